"""The OpenAI-compatible endpoint as a deployment: which path leads where. Runs on ingress replicas."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path
from starlette.types import Lifespan

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.serving import Route, ServingConfig
from firewall_ray.store.dataset import Dataset
from serve_app.apis.messages.errors import in_the_apis_shape
from serve_app.body import parsed_object
from serve_app.errors import add_error_handlers, error_response
from serve_app.gateway import Gateway
from serve_app.http.admission import Admission
from serve_app.http.openapi import docs_response, openapi_response
from serve_app.http.page import page_response
from serve_app.http.places import KeyPlaces
from serve_app.http.readiness import Readiness
from serve_app.http.request_ids import RequestIds
from serve_app.http.traced import Traced
from serve_app.http.without_chunks import WithoutChunks
from serve_app.logs import warnings_at_once
from serve_app.models.client import DeployedModel, ModelClient
from serve_app.models.remote import RemoteModel
from serve_app.models.traced import TracedModel
from serve_app.money.caps import ANSWER_WITHIN_S, SpendCaps
from serve_app.money.pricing import Pricing
from serve_app.otlp import replica_tracing
from serve_app.recording.counters import LiveCounters
from serve_app.recording.decision_log import DecisionLog
from serve_app.recording.exchange import Observer
from serve_app.recording.spans import Spans
from serve_app.recording.telemetry import Telemetry
from serve_app.recording.threaded import ThreadedObserver
from serve_app.routing.client import DeployedRouter
from serve_app.shared.client import SharedState
from serve_app.tracing import Tracing


class Ingress:
    """ids: what clients call the models. models: of each, its deployment's handle or the server that has it. decisions: where
    the decision log goes, if `serving` wants one; other_requests: what no score decided. spending: where what was spent is kept,
    with caps. shared: what all ingress replicas know together.
    """

    def __init__(
        self,
        router: DeploymentHandle,
        ids: Mapping[Route, str],
        models: Mapping[Route, DeploymentHandle | OpenAIModelConfig],
        serving: ServingConfig,
        decisions: Dataset,
        spending: Dataset,
        shared: DeploymentHandle | None = None,
        other_requests: Dataset | None = None,
    ) -> None:
        warnings_at_once()
        self._tracing = replica_tracing()
        clients = {route: _client(ids[route], model, serving, self._tracing) for route, model in models.items()}
        self._telemetry = telemetry = Telemetry()
        name = serve.get_replica_context().replica_id.unique_id
        # By its name the page sees that it is talking to another replica, which counts for itself.
        self._counters = LiveCounters(
            is_priced=bool(serving.prices),
            holds_budget=serving.budget_control is not None,
            keeps_text=serving.decision_log is not None and serving.decision_log.keep_text,
            replica=name,
        )
        self._threaded = ThreadedObserver(telemetry)
        # The counters stay in the event loop, which alone reads them; Ray's metrics would stop it (threaded.py).
        observers: list[Observer] = [self._threaded, self._counters]
        if self._tracing is not None:
            observers.append(Spans(ids))
        self._logs: list[DecisionLog] = []
        if serving.decision_log is not None:
            for each in filter(None, (decisions, other_requests)):
                self._logs.append(DecisionLog(each, serving.decision_log, telemetry.logged))
        observers += self._logs
        shared_state = None if shared is None else SharedState(shared, serving.router_timeout_s)
        self._caps: SpendCaps | None = None
        if shared is not None and serving.spend_caps is not None:
            self._caps = SpendCaps(serving.spend_caps, SharedState(shared, ANSWER_WITHIN_S), name, spending)
        pricing = Pricing(serving.prices, self._caps)
        deployed_router = DeployedRouter(router, max_calls=serving.router_replicas.max + 1)
        self._gateway = Gateway(deployed_router, clients, ids, serving, observers, shared_state, pricing)
        self._places = KeyPlaces(serving.max_in_flight_per_key, shared_state, name)
        self._serving = serving

    async def __serve_build_asgi_app__(self) -> Starlette:
        refused = self._telemetry.refused
        return asgi_app(self._gateway, self._serving, self._counters, refused, self._lifespan, self._places, self._tracing)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Serve ends it once the replica's last request is answered, and waits for it."""
        async with AsyncExitStack() as closing:  # each, whatever befalls the others; the last first
            if self._tracing is not None:
                closing.push_async_callback(asyncio.to_thread, self._tracing.close)
            closing.push_async_callback(self._close_logs)
            closing.push_async_callback(asyncio.to_thread, self._threaded.close)
            if self._caps is not None:
                closing.push_async_callback(self._caps.close)
                closing.callback(asyncio.create_task(self._caps.tell_forever()).cancel)
            closing.callback(asyncio.create_task(self._places.tell_forever()).cancel)
            yield

    async def _close_logs(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(log.close) for log in self._logs))


def _client(name: str, model: DeploymentHandle | OpenAIModelConfig, serving: ServingConfig, tracing: Tracing | None) -> ModelClient:
    if not isinstance(model, OpenAIModelConfig):
        return DeployedModel(name, model, serving)
    remote = RemoteModel(name, model, serving)
    return remote if tracing is None else TracedModel(remote, model)


def asgi_app(
    gateway: Gateway,
    serving: ServingConfig,
    counters: LiveCounters,
    on_refused: Callable[[int], None],
    lifespan: Lifespan[Starlette] | None = None,
    places: KeyPlaces | None = None,
    tracing: Tracing | None = None,
) -> Starlette:
    """Every endpoint, around a gateway. No CORS: other sites' scripts are not let in.

    on_refused: is told the status of each request that is not let in, of which the gateway never hears. places: see `Admission`.
    tracing: None where it is off.
    """

    async def chat(request: Request) -> Response:
        return await gateway.answer("chat", request)

    async def completions(request: Request) -> Response:
        return await gateway.answer("completions", request)

    async def responses(request: Request) -> Response:
        return await gateway.answer("responses", request)

    async def messages(request: Request) -> Response:
        # Of a model's refusal, which is an answer to the gateway.
        return in_the_apis_shape(request.scope, await gateway.answer("messages", request))

    async def route(request: Request) -> Response:
        parsed = parsed_object(await request.body())
        decisions = await gateway.route(parsed, request.headers, _key_name(request))
        answers = [decision.as_json(gateway.ids[decision.route]) for decision in decisions]
        prompt = parsed.get("prompt")
        # A list of token ids is one prompt.
        is_batch = isinstance(prompt, list) and not isinstance(prompt[0], int)
        if is_batch:
            return JSONResponse({"decisions": answers})
        # For gateways that read no bodies.
        return JSONResponse(answers[0], headers=decisions[0].headers() | {"x-firewall-model": answers[0]["model"]})

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model_card(each) for each in gateway.names.listed(_key_name(request))]})

    async def model(request: Request) -> Response:
        model_id = request.path_params["model_id"]
        if not model_id:  # a client that puts a slash behind its URLs
            return await models(request)
        # For its refusal: of what is not here, it names what is.
        gateway.names.options(model_id, {}, _key_name(request))
        return JSONResponse(_model_card(model_id))

    async def stats(request: Request) -> Response:
        return JSONResponse(counters.snapshot(_key_name(request)))

    readiness = Readiness(gateway.checks())
    the_page = page_response(serving.examples)  # read and hashed once, not at each visit

    async def page(request: Request) -> Response:
        return the_page

    openapi, docs = openapi_response(), docs_response()

    async def openapi_document(request: Request) -> Response:
        return openapi

    async def docs_page(request: Request) -> Response:
        return docs

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        problems = await readiness.problems()
        if problems:
            described = ", ".join(f"{name} ({problem})" for name, problem in problems.items())
            return error_response(503, f"Not ready: {described}.", code="not_ready", headers={"retry-after": "5"})
        return JSONResponse({"status": "ready"})

    middleware = [Middleware(RequestIds), Middleware(WithoutChunks), Middleware(Admission, serving, on_refused, places)]
    if tracing is not None:
        middleware.append(Middleware(Traced, tracing))
    app = Starlette(
        routes=[
            Path("/v1/chat/completions", chat, methods=["POST"]),
            Path("/v1/completions", completions, methods=["POST"]),
            Path("/v1/responses", responses, methods=["POST"]),
            Path("/v1/messages", messages, methods=["POST"]),
            Path("/v1/route", route, methods=["POST"]),
            # path: gateways such as Envoy put a prefix before the path that their client asked for.
            Path("/v1/route/{path:path}", route, methods=["POST"]),
            Path("/v1/models", models),
            # path: clients ask for names of other hubs, with slashes, and shall get the 404 that says what there is.
            Path("/v1/models/{model_id:path}", model),
            Path("/", page),
            Path("/openapi.json", openapi_document),
            Path("/docs", docs_page),
            Path("/stats", stats),
            Path("/health", health),
            Path("/ready", ready),
        ],
        middleware=middleware,
        lifespan=lifespan,
    )
    add_error_handlers(app, in_the_apis_shape)
    return app


def _key_name(request: Request) -> str | None:
    """Of the key that admission let in."""
    name: str | None = request.scope.get("state", {}).get("key_name")
    return name


def _model_card(model_id: str) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "firewall-ray"}  # clients want a number
