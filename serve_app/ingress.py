"""The OpenAI-compatible endpoint: asks the router which model answers, and hands the request on to it as it came.

Runs on ingress replicas. Ray's own `OpenAiIngress` does everything but the routing: it calls the model's deployment and
streams its answer.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, model_validator
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, CompletionRequest, ModelCard, ModelList
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress
from starlette.responses import Response

from firewall_ray.config import PairConfig, ServingConfig
from serve_app.decision import Decision, Reason, Route
from serve_app.http_errors import RequestRefused, add_error_handlers
from serve_app.request_parts import FIREWALL, prompts_of, question_of, strong_fraction_of

logger = logging.getLogger("ray.serve")

ENDPOINTS: dict[str, Callable[[FastAPI], Callable]] = {
    "chat": lambda app: app.post("/v1/chat/completions"),
    "completions": lambda app: app.post("/v1/completions"),
    "route": lambda app: app.post("/v1/route"),
    "models": lambda app: app.get("/v1/models", response_model=ModelList),
    "model_data": lambda app: app.get("/v1/models/{model:path}", response_model=ModelCard),
    "health": lambda app: app.get("/health"),
}


class RouteRequest(BaseModel):
    """The body of /v1/route: that of a chat or of a completion; what routing does not read is ignored."""

    model: str = FIREWALL
    messages: list[Any] | None = None
    prompt: str | list[Any] | None = None

    @model_validator(mode="after")
    def _one_text(self) -> "RouteRequest":
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either `messages`, as for a chat, or `prompt`, as for a completion")
        return self


class FirewallIngress(OpenAiIngress):
    """llm_deployments and model_cards: of the two models, by id, as Ray's ingress has them. pair: which of them is which."""

    def __init__(
        self,
        llm_deployments: dict[str, DeploymentHandle],
        model_cards: dict[str, ModelCard],
        *,
        router: DeploymentHandle,
        pair: PairConfig,
        serving: ServingConfig,
    ) -> None:
        super().__init__(llm_deployments, model_cards)
        self._router = router
        self._serving = serving
        self._model_ids: dict[Route, str] = {"weak": pair.weak, "strong": pair.strong}

    # Endpoints. The bodies keep the parent's types: FastAPI reads a request by them. ---------------------------------

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Chat completion: the router reads the last user text, in the prompt template that it was trained with."""
        question = question_of((await request.json())["messages"])
        decision = await self._decide_request(body.model, [question] if question else [], are_questions=True)
        body.model = self._model_ids[decision.route]
        response = await super().chat(body, request)
        response.headers.update(decision.headers())
        return response

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Completion: the router reads the prompt as it is."""
        prompts = prompts_of((await request.json()).get("prompt"))
        decision = await self._decide_request(body.model, prompts, are_questions=False)
        body.model = self._model_ids[decision.route]
        response = await super().completions(body, request)
        response.headers.update(decision.headers())
        return response

    async def route(self, body: RouteRequest) -> dict[str, Any]:
        """The decision alone: one object, or {"decisions": [...]} where `prompt` is a list, one for each of its texts."""
        if body.messages is not None:
            question = question_of(body.messages)
            texts = [question] if question else []
        else:
            texts = prompts_of(body.prompt)
        are_many = isinstance(body.prompt, list) and bool(texts)
        decisions = await self._decide(body.model, texts, are_questions=body.messages is not None)
        answers = [decision.as_json(self._model_ids[decision.route]) for decision in decisions]
        return {"decisions": answers} if are_many else answers[0]

    async def models(self) -> ModelList:
        """The router, then the models of the pair."""
        return ModelList(data=[_firewall_card(FIREWALL), *(await super().models()).data])

    async def model(self, model_id: str) -> ModelCard | None:
        """The card of any id that a request may name. Raises RequestRefused (404) for others."""
        return _firewall_card(model_id) if isinstance(self._asked_for(model_id), float) else await super().model(model_id)

    async def health(self) -> dict[str, str]:
        """Answers once the application is up; Serve takes a replica that does not out of service."""
        return {"status": "ok"}

    # Routing ---------------------------------------------------------------------------------------------------------

    async def _decide_request(self, model: str | None, texts: list[str], *, are_questions: bool) -> Decision:
        """One decision for a request, since one model answers it: the strong one as soon as one of its texts needs it."""
        decisions = await self._decide(model, texts, are_questions=are_questions)
        return next((decision for decision in decisions if decision.route == "strong"), decisions[0])

    async def _decide(self, model: str | None, texts: list[str], *, are_questions: bool) -> list[Decision]:
        """One decision a text, at least one. Raises RequestRefused when `model` names nothing here."""
        asked_for = self._asked_for(model)
        if not isinstance(asked_for, float):
            return [Decision(asked_for, "requested")] * max(1, len(texts))
        if not texts:
            return [Decision(self._serving.fail_open, "no-text")]
        reason: Reason
        answer = self._router.decide.remote(texts, asked_for, are_questions)
        try:
            async with asyncio.timeout(self._serving.router_timeout_s):
                return await answer
        except TimeoutError:
            answer.cancel()
            reason = "router-timeout"
        except Exception as e:  # whatever befell the router, the models can still answer
            reason = "router-failed"
            logger.warning("The router failed (%s); the request goes to the %s model.", type(e).__name__, self._serving.fail_open)
        return [Decision(self._serving.fail_open, reason)] * len(texts)

    def _asked_for(self, model: str | None) -> float | Route:
        """The strong fraction, where `model` is the router's name; else the route to the model it names."""
        ids = [FIREWALL, f"{FIREWALL}-0.3 (any strong fraction from 0 to 1)", *self._model_ids.values()]
        if model is None:
            raise RequestRefused(400, f"model is missing. There are: {', '.join(ids)}.", code="missing_model", param="model")
        fraction = strong_fraction_of(model, self._serving.strong_fraction)
        if fraction is not None:
            return fraction
        for route, model_id in self._model_ids.items():
            if model == model_id:
                return route
        raise RequestRefused(
            404, f"The model {model[:100]!r} does not exist. There are: {', '.join(ids)}.", code="model_not_found", param="model"
        )


def new_fastapi_app() -> FastAPI:
    """Without CORS and without the documentation pages, which load scripts from elsewhere."""
    app = FastAPI(title="firewall-ray", docs_url=None, redoc_url=None)
    add_error_handlers(app)
    return app


def _firewall_card(model_id: str) -> ModelCard:
    return ModelCard(id=model_id, object="model", owned_by="firewall-ray", permission=[], metadata={})
