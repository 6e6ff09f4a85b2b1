"""Bodies and answers beyond gRPC's own 4 MiB, on the way between real replicas."""

import time
from collections.abc import Iterator

import httpx
import pytest
from pydantic_core import from_json, to_json
from running_app import free_port

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.store.layout import ArtifactStore
from serve_app.models.answers import Endpoint, StreamPart, WholeAnswer
from serve_app.serve_settings import REPLICA_SETTINGS

pytestmark = pytest.mark.slow

MIB = 2**20


@pytest.fixture(scope="module")
def url(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve
    from ray.serve.context import _get_global_client

    from serve_app.http.ingress import Ingress

    class Echo:
        """A model that answers with its prompt."""

        async def answer(self, endpoint: Endpoint, body: bytes) -> WholeAnswer:
            return WholeAnswer(200, to_json({"choices": [{"text": from_json(body)["prompt"]}]}), None, 0.0)

        async def stream(self, endpoint: Endpoint, body: bytes) -> Iterator[StreamPart]:
            yield StreamPart(b"data: " + to_json({"choices": [{"text": from_json(body)["prompt"]}]}) + b"\n\n", model_s=0.0)

        def check_health(self) -> None:
            """It is well as long as it is there."""

    # gRPC between replicas, as RAY_SERVE_THROUGHPUT_OPTIMIZED has it.
    options = {"num_cpus": 0, "runtime_env": {"env_vars": {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1", **REPLICA_SETTINGS}}}
    store = ArtifactStore(str(tmp_path_factory.mktemp("run")))
    echo = serve.deployment(Echo, name="Echo", ray_actor_options=options).bind()
    application = serve.deployment(serve.ingress()(Ingress), ray_actor_options=options).bind(
        router=echo,
        ids={"weak": "small", "strong": "large"},
        models={"weak": echo, "strong": OpenAIModelConfig(engine="openai", base_url="http://127.0.0.1:1/v1", model="x")},
        serving=ServingConfig.model_validate({"api_keys": "disabled", "max_body_mib": 16}),
        decisions=store.decisions(),
        spending=store.spending(),
    )
    # Other tests of the session may have a Serve that runs.
    ours = _get_global_client(raise_if_no_controller_running=False) is None
    if ours:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    serve.run(application, name="large", route_prefix="/large")
    yield f"http://127.0.0.1:{_get_global_client().http_config.port}/large"
    if ours:
        serve.shutdown()
    else:
        serve.delete("large")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("mib", [3, 5, 15.9])
def test_what_the_limit_allows_gets_there_and_back(url: str, mib: float, streams: bool) -> None:
    """It was a 503 that said to try again."""
    prompt = "x" * int(mib * MIB)
    response = httpx.post(f"{url}/v1/completions", json={"model": "small", "prompt": prompt, "stream": streams}, timeout=60)
    assert response.status_code == 200
    assert from_json(response.content.removeprefix(b"data: ").strip())["choices"][0]["text"] == prompt


def test_what_is_larger_is_refused_at_once(url: str) -> None:
    began = time.monotonic()
    response = httpx.post(f"{url}/v1/completions", json={"model": "small", "prompt": "x" * 17 * MIB}, timeout=60)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert time.monotonic() - began < 5
