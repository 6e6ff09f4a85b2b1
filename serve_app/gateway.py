"""What happens to a request: a decision, a model's answer, the other model's where the first gives none, and a record of it.

A plain ASGI application around a router and two models, whatever those are: the ingress deployment runs it in Ray Serve, and
tests without.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from firewall_ray.config.serving import Route, ServingConfig
from serve_app.errors import RequestRefused, error_body
from serve_app.models.answers import Answer, Endpoint, ModelUnavailable
from serve_app.models.client import ModelClient
from serve_app.money.pricing import Pricing
from serve_app.recording.exchange import Exchange, Observer
from serve_app.routing.client import RouterClient
from serve_app.routing.conversations import HEADER, Conversation, KnownConversations, conversation_of, first_turn
from serve_app.routing.decision import OTHER, Decision, Reason
from serve_app.routing.request import FIREWALL, RoutingOptions, chat_text, prompts_of, routing_options
from serve_app.shared.client import SharedState

CLIENT_LEFT = 499  # nginx' status for it; nobody receives it
RETRY_AFTER_S = 1
MAX_PROMPTS = 2_048  # of one request; millions fit into a body, and would keep the router from everybody else

logger = logging.getLogger("ray.serve")


class Text(NamedTuple):
    """What the router reads of a request. are_questions: to be put into the prompt template; else whole prompts."""

    texts: list[str]
    are_questions: bool


class Gateway:
    """ids: what clients call the models. observers: are told of every chat and completion when it is over.

    shared: None where this is the only ingress replica.
    """

    def __init__(
        self,
        router: RouterClient,
        models: Mapping[Route, ModelClient],
        ids: Mapping[Route, str],
        serving: ServingConfig,
        observers: Sequence[Observer] = (),
        shared: SharedState | None = None,
        pricing: Pricing | None = None,
    ) -> None:
        self._router = router
        self._models = models
        self.ids = ids
        self._serving = serving
        self._pricing = pricing or Pricing(serving.prices)
        self._observers = [self._pricing, *observers]  # first, for what an exchange cost is for the others to read
        self._fail_open: Route = serving.shadow or serving.fail_open
        self._conversations = KnownConversations(shared)

    # Requests --------------------------------------------------------------------------------------------------------

    async def answer(self, endpoint: Endpoint, request: Request) -> Response:
        """A chat or a completion: decided, answered and recorded. To be cancelled when the client leaves, as Ray Serve does."""
        exchange = Exchange(endpoint, key_name=request.scope.get("state", {}).get("key_name"))
        try:
            response = await self._answer(exchange, request)
        except asyncio.CancelledError:
            exchange.client_left = True
            self._close(exchange, CLIENT_LEFT)
            raise
        except RequestRefused as e:
            self._close(exchange, e.status)
            raise
        except Exception:
            self._close(exchange, 500)
            raise
        if not isinstance(response, StreamingResponse):  # a stream is over when its last byte is sent
            self._close(exchange, response.status_code)
        return response

    async def _answer(self, exchange: Exchange, request: Request) -> Response:
        await self._pricing.admit(exchange.key_name)
        body = await request.body()
        exchange.num_bytes = len(body)
        parsed = parsed_object(body)
        streams = exchange.streams = wants_stream(parsed)
        options = routing_options(parsed.get("model"), request.headers, self.ids)
        text = self._text_of(exchange.endpoint, parsed)
        exchange.text = text.texts[0] if text.texts else None
        conversation = None
        # A completion has no turns.
        if self._serving.sticky and exchange.endpoint == "chat" and options.route is None:
            named = request.headers.get(HEADER)
            conversation = conversation_of(parsed["messages"], options.strong_fraction, named, exchange.key_name)

        decision = exchange.decision = await self._decide_request(exchange, options, text, conversation)
        exchange.router_s = exchange.elapsed_s()
        answer = await self._ask(exchange, decision, body, conversation, streams=streams)
        exchange.first_byte_s = exchange.elapsed_s()  # of a whole answer, this is its last byte too
        exchange.model_s, exchange.usage = answer.model_s, answer.usage

        headers = decision.headers()
        if exchange.answered_by != decision.route:
            assert exchange.answered_by is not None
            headers |= {"x-firewall-route": exchange.answered_by, "x-firewall-fallback": str(exchange.fallback)}
        # Also where a stream was asked for, when the model refuses the body.
        if isinstance(answer.body, bytes):
            headers |= self._pricing.headers(exchange)
            return Response(answer.body, answer.status, headers, answer.media_type)

        exchange.status = CLIENT_LEFT  # until the last chunk came

        async def over() -> None:
            await self._stream_over(exchange, answer)

        return _Stream(self._relayed(exchange, answer.body), over, headers)

    async def route(self, parsed: dict[str, Any], headers: Mapping[str, str]) -> list[Decision]:
        """The decisions alone: of a chat's body one, of a completion's one for each of its prompts. Nothing is recorded."""
        if (parsed.get("messages") is None) == (parsed.get("prompt") is None):
            raise RequestRefused(
                400,
                "Give `messages`, as for a chat, or `prompt`, as for a completion.",
                code="invalid_value",
                param="messages",
            )
        text = self._text_of("chat" if parsed.get("prompt") is None else "completions", parsed)
        if parsed.get("prompt") is not None and not text.texts:
            message = "prompt: must be a text or a list of texts; the router reads no token ids."
            raise RequestRefused(400, message, code="invalid_type", param="prompt")
        # No model waits for these: a batch has the time of as many requests.
        timeout_s = self._serving.router_timeout_s * len(text.texts)
        return await self._decide(routing_options(parsed.get("model", FIREWALL), headers, self.ids), text, timeout_s)

    async def ready(self) -> dict[str, str]:
        """What is wrong with router and models, by name; empty when all of them answer."""
        checks: dict[str, Awaitable[Any]] = {"router": self._router.decide(["ready?"], None, True)}
        checks |= {self.ids[route]: model.check() for route, model in self._models.items()}
        results = await asyncio.gather(*(asyncio.wait_for(check, 5) for check in checks.values()), return_exceptions=True)
        return {name: type(e).__name__ for name, e in zip(checks, results, strict=True) if isinstance(e, BaseException)}

    # Decisions -------------------------------------------------------------------------------------------------------

    def _text_of(self, endpoint: Endpoint, parsed: dict[str, Any]) -> Text:
        if endpoint == "completions":
            texts = prompts_of(parsed.get("prompt"))
            if len(texts) > MAX_PROMPTS:
                raise RequestRefused(400, f"prompt: at most {MAX_PROMPTS:,} texts a request.", code="invalid_value", param="prompt")
            return Text(texts, are_questions=False)
        messages = parsed.get("messages")
        if not isinstance(messages, list):
            raise RequestRefused(400, "messages: must be a list of messages.", code="invalid_type", param="messages")
        text = chat_text(first_turn(messages) if self._serving.sticky else messages, self._serving.chat_text)
        return Text([text] if text else [], are_questions=True)

    async def _decide_request(
        self, exchange: Exchange, options: RoutingOptions, text: Text, conversation: Conversation | None
    ) -> Decision:
        """One decision for a request, since one model answers it: the strong one as soon as one of its texts needs it."""
        if conversation is not None and (known := await self._conversations.recall(conversation)) is not None:
            decision = known.sticky()
        else:
            decisions = await self._decide(options, text, self._serving.router_timeout_s, counts=True)
            decisive = next((i for i, each in enumerate(decisions) if each.route == "strong"), 0)
            decision = decisions[decisive]
            if text.texts:
                exchange.text = text.texts[decisive]
            if conversation is not None:
                # What the score chose: in shadow mode, what is done with it is said anew at each turn.
                decision = await self._conversations.decided(conversation, decision)
        if self._serving.shadow is not None and decision.reason in ("score", "sticky"):
            decision = decision.shadowed_by(self._serving.shadow)
        return decision

    async def _decide(self, options: RoutingOptions, text: Text, timeout_s: float, *, counts: bool = False) -> list[Decision]:
        """One decision a text, at least one."""
        if options.route is not None:
            # /v1/route answers for each text, though none of them was looked at.
            return [Decision(options.route, "requested")] * max(1, len(text.texts))
        if not text.texts:
            return [Decision(self._fail_open, "no-text")]
        reason: Reason
        try:
            async with asyncio.timeout(timeout_s):
                return await self._router.decide(text.texts, options.strong_fraction, text.are_questions, counts)
        except TimeoutError:
            reason = "router-timeout"
        except Exception as e:  # whatever befell the router, the models can still answer
            reason = "router-failed"
            logger.warning("The router failed (%s); the request goes to the %s model.", type(e).__name__, self._fail_open)
        return [Decision(self._fail_open, reason)] * len(text.texts)

    # Answers ---------------------------------------------------------------------------------------------------------

    async def _ask(
        self, exchange: Exchange, decision: Decision, body: bytes, conversation: Conversation | None, *, streams: bool
    ) -> Answer:
        """The chosen model's answer, or the other's where it gives none and the client did not name it."""
        session = conversation.key.hex() if conversation is not None else None
        routes = [decision.route]
        if self._serving.fallback and decision.reason != "requested":
            routes.append(OTHER[decision.route])
        causes = []
        for route in routes:
            try:
                answer = await self._models[route].ask(exchange.endpoint, body, streams=streams, session=session)
            except ModelUnavailable as e:
                causes.append(e.why)
                continue
            exchange.answered_by = route
            exchange.fallback = causes[0] if causes else None
            return answer
        exchange.fallback = causes[0]  # of the model that was to answer; the other's is in the message
        tried = " nor ".join(f"{self.ids[route]} ({cause})" for route, cause in zip(routes, causes, strict=True))
        if set(causes) == {"timeout"}:
            raise RequestRefused(504, f"No answer in time from {tried}.", code="model_timeout")
        raise RequestRefused(503, f"No answer from {tried}. Try again.", code="model_unavailable", retry_after_s=RETRY_AFTER_S)

    async def _relayed(self, exchange: Exchange, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks as they come. What fails now ends in an error event: another model's text would corrupt the answer."""
        try:
            async for chunk in chunks:
                yield chunk
            exchange.status = 200
        except Exception as e:
            exchange.status = 502
            logger.warning("The %s model failed in the middle of a stream (%s).", exchange.answered_by, type(e).__name__)
            yield b"data: " + error_body(502, "The model failed in the middle of its answer.", code="model_failed") + b"\n\n"

    async def _stream_over(self, exchange: Exchange, answer: Answer) -> None:
        try:
            if answer.release is not None:
                await answer.release()
        finally:
            exchange.usage = answer.usage
            exchange.client_left = exchange.status == CLIENT_LEFT
            self._close(exchange, exchange.status)

    def _close(self, exchange: Exchange, status: int) -> None:
        exchange.status = status
        exchange.total_s = exchange.elapsed_s()
        for observer in self._observers:
            try:
                observer.record(exchange)
            except Exception as e:  # it must not, but an answer is worth more than a record of it
                logger.error("%s failed to record a request (%s).", type(observer).__name__, type(e).__name__)


class _Stream(StreamingResponse):
    """Server-sent events. `over` is awaited once, also where the client left before the first of them."""

    def __init__(self, chunks: AsyncIterator[bytes], over: Callable[[], Awaitable[None]], headers: Mapping[str, str]) -> None:
        super().__init__(chunks, 200, headers, "text/event-stream")
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._over()


def parsed_object(body: bytes) -> dict[str, Any]:
    """A request's JSON object. Raises RequestRefused."""
    try:
        parsed = from_json(body, allow_inf_nan=False)
    except ValueError as e:
        raise RequestRefused(400, f"The body is not JSON: {e}.", code="json_invalid") from e
    if not isinstance(parsed, dict):
        raise RequestRefused(400, "The body must be a JSON object.", code="invalid_type")
    if any(isinstance(value, float) and math.isinf(value) for value in parsed.values()):  # as 1e400 is read
        raise RequestRefused(400, "The body has a number beyond the range of floating point.", code="json_invalid")
    return parsed


def wants_stream(parsed: dict[str, Any]) -> bool:
    """Raises RequestRefused on anything but true, false and null."""
    stream = parsed.get("stream")
    # Strictly, since the gateway reads a stream otherwise than a whole answer: were 1 or "true" let through, vLLM would take it for
    # true, and the two would read one body differently.
    if stream is not None and not isinstance(stream, bool):
        raise RequestRefused(400, "stream: must be true or false.", code="invalid_type", param="stream")
    return bool(stream)
