"""A bought model whose answers are spans: a client's, around each call to its server, which is told of the trace. Runs on ingress
replicas, where tracing is on.
"""

from urllib.parse import urlsplit

from firewall_ray.config.models import OpenAIModelConfig
from serve_app.models.answers import OPERATIONS, Answer, Endpoint, ModelUnavailable, usage_attributes
from serve_app.models.client import ModelClient
from serve_app.tracing import CURRENT, Step


class TracedModel:
    """A `ModelClient` around another. config: of the model, where it is."""

    def __init__(self, model: ModelClient, config: OpenAIModelConfig) -> None:
        self._model = model
        url = urlsplit(config.base_url)
        self._name = config.model
        self._attributes = {
            "gen_ai.provider.name": "openai",  # whose API it speaks
            "gen_ai.request.model": config.model,
            "server.address": url.hostname,
            "server.port": url.port,
        }
        self.decode = model.decode
        self.check = model.check

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
        """As the protocol says."""
        within = CURRENT.get()
        if within is None:
            return await self._model.ask(endpoint, body, streams=streams, session=session)
        step = within.child(f"{OPERATIONS[endpoint]} {self._name}", "CLIENT")
        step.set({"gen_ai.operation.name": OPERATIONS[endpoint], **self._attributes})
        token = CURRENT.set(step)  # its headers go to the server
        try:
            answer = await self._model.ask(endpoint, body, streams=streams, session=session)
        except BaseException as e:
            if isinstance(e, Exception):  # else the client left
                step.failed(e.why if isinstance(e, ModelUnavailable) else type(e).__name__)
            step.end()
            raise
        finally:
            CURRENT.reset(token)
        if answer.release is None:
            _end(step, answer)
            return answer
        release = answer.release

        async def over() -> None:
            try:
                await release()
            finally:
                _end(step, answer)

        answer.release = over
        return answer


def _end(step: Step, answer: Answer) -> None:
    if answer.status >= 400:
        step.failed(str(answer.status))
    step.set(usage_attributes(answer.usage))
    step.end()
