"""Model deployments without an engine: what surrounds them is the application's own, and a replica starts in a second."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import ray
from pydantic_core import to_json
from ray import serve
from ray.serve.deployment import Application

from serve_app.models.answers import Endpoint, StreamPart, Usage, WholeAnswer

SECONDS = 0.05  # an answer takes


class LightModel:
    """What the ingress asks of a `ModelServer`. Its text is the model's id."""

    def __init__(self, model_id: str) -> None:
        self._id = model_id

    async def answer(self, endpoint: Endpoint, body: bytes) -> WholeAnswer:
        await asyncio.sleep(SECONDS)
        content = {"object": "text_completion", "model": self._id, "choices": [{"index": 0, "text": self._id}]}
        return WholeAnswer(200, to_json(content), Usage(1, 1), SECONDS)

    async def stream(self, endpoint: Endpoint, body: bytes) -> AsyncIterator[StreamPart]:
        for part in (self._id, "[DONE]"):
            await asyncio.sleep(SECONDS / 2)
            yield StreamPart(f"data: {part}\n\n".encode(), model_s=SECONDS / 2)

    def problem(self) -> None:
        """There is none."""

    def check_health(self) -> None:
        """It is well as long as it is there."""


def light_deployment(llm_config: Any, deployment_cls: Any, bind_kwargs: Any) -> Application:
    """In place of `build_llm_deployment`: of the same name and size, in the same bundles on the same nodes."""
    options = deployment_cls.get_deployment_options(llm_config)
    del options["ray_actor_options"]  # a hook that imports vLLM
    name = f"{deployment_cls.__name__}:{llm_config.model_id}"
    return serve.deployment(LightModel, name=name, **options).bind(llm_config.model_id)


def deploy(address: str, config_path: str, port: int) -> None:
    """In a driver: the whole application with light models, which goes on when the driver has ended. Blocks until it runs."""
    import serve_app.app

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas do not import the tests' modules
    ray.init(address=address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve_app.app.build_llm_deployment = light_deployment
    serve.run(serve_app.app.build_app({"config": config_path}), name="firewall", route_prefix="/")
