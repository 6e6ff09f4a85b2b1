"""What happens to a request: a decision, a model's answer, the other model's where the first gives none, and a record of it.

A plain ASGI application around a router and two models, whatever those are: the ingress deployment runs it in Ray Serve, and
tests without.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from firewall_ray.config.serving import Route, ServingConfig
from serve_app.apis.chat_answers import FAILED, Translation
from serve_app.apis.translations import TRANSLATIONS
from serve_app.body import parsed_object, wants_stream
from serve_app.errors import RequestRefused, error_body
from serve_app.events import Events
from serve_app.limits import KeyLimits
from serve_app.models.answers import Answer, EngineCrashed, ModelUnavailable
from serve_app.models.client import ModelClient
from serve_app.models.event_stream import num_tokens_in
from serve_app.models.no_answer import no_answer
from serve_app.money.pricing import Pricing
from serve_app.recording.exchange import Asked, Exchange, Observer
from serve_app.recording.spans import span_asks
from serve_app.routing.client import RouterClient
from serve_app.routing.conversations import HEADER, Conversation, KnownConversations, conversation_of
from serve_app.routing.decision import OTHER, Decision, Reason, certain
from serve_app.routing.names import Names
from serve_app.routing.request import FIREWALL, RoutingOptions
from serve_app.routing.stand_ins import StandIns
from serve_app.shared.client import SharedState
from serve_app.suspects import Suspects
from serve_app.texts import Text, TextReader
from serve_app.work import WorkInFlight

CLIENT_LEFT = 499  # nginx' status for it; nobody receives it
READY_S = 5.0
LARGE_BYTES = 2**16  # of a request of another API; a megabyte of small parts is 0.2 s of a CPU

logger = logging.getLogger("ray.serve")


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
        self.names = Names(ids, serving)
        self._serving = serving
        self._texts = TextReader(models, ids, serving)
        self._pricing = pricing or Pricing(serving.prices)
        self._limits = KeyLimits(serving, shared)
        # Pricing first, for what an exchange cost and used is for the others to read.
        self._observers = [self._pricing, *observers, self._limits]
        self._fail_open: Route = serving.shadow or serving.fail_open
        self._conversations = KnownConversations(shared)
        self._work = WorkInFlight(serving)
        self._stand_ins = StandIns(router, serving)
        self._suspects = Suspects()

    # Requests --------------------------------------------------------------------------------------------------------

    async def answer(self, endpoint: Asked, request: Request) -> Response:
        """A chat, in the words of any API, or a completion: decided, answered and recorded. To be cancelled when the client
        leaves, as Ray Serve does. Refusals are in OpenAI's shape.
        """
        state = request.scope.get("state", {})
        exchange = Exchange(endpoint, state.get("key_name"), state.get("request_id"))
        try:
            response = await self._answer(exchange, request)
        except asyncio.CancelledError:
            exchange.client_left = True
            self._close(exchange, CLIENT_LEFT)
            raise
        except RequestRefused as e:
            if exchange.grant is not None:
                e.headers |= exchange.grant.headers()
            self._close(exchange, e.status)
            raise
        except Exception:
            self._close(exchange, 500)
            raise
        if exchange.grant is not None:
            response.headers.update(exchange.grant.headers())
        if not isinstance(response, Events):  # a stream is over when its last byte is sent
            self._close(exchange, response.status_code)
        return response

    async def _answer(self, exchange: Exchange, request: Request) -> Response:
        await self._pricing.admit(exchange.key_name)
        body = await request.body()
        exchange.num_bytes = len(body)
        parsed = parsed_object(body)
        streams = exchange.streams = wants_stream(parsed)
        translation = None
        if exchange.endpoint in TRANSLATIONS:
            translate = TRANSLATIONS[exchange.endpoint]
            is_large = len(body) > LARGE_BYTES
            translation = await asyncio.to_thread(translate, parsed) if is_large else translate(parsed)
            parsed = translation.chat
            body = to_json(parsed)
        options = self.names.options(parsed.get("model"), request.headers, exchange.key_name)
        span_asks(exchange.model_endpoint, parsed, streams=streams)
        text = self._texts.of(exchange.model_endpoint, parsed)
        exchange.work = self._work.begin(parsed, exchange.key_name)  # before the router reads prompts that no model will
        exchange.grant = await self._limits.begin(exchange.key_name, exchange.work)
        if options.route is None:
            text = await self._texts.decoded(text, parsed)
        exchange.text = text.texts[0] if text.texts else None
        conversation = None
        # A completion has no turns.
        if self._serving.sticky and exchange.model_endpoint == "chat" and options.route is None:
            named = request.headers.get(HEADER)
            conversation = conversation_of(parsed["messages"], options.strong_fraction, named, exchange.key_name)

        decision = exchange.decision = await self._decide_request(exchange, options, text, conversation)
        exchange.router_s = exchange.elapsed_s()
        answer = await self._ask(exchange, decision, body, parsed, conversation and conversation.key.hex(), streams=streams)
        exchange.first_byte_s = exchange.elapsed_s()  # of a whole answer, this is its last byte too
        exchange.model_s, exchange.usage = answer.model_s, answer.usage

        headers = decision.headers()
        if exchange.answered_by != decision.route:
            assert exchange.answered_by is not None
            headers |= {"x-firewall-route": exchange.answered_by, "x-firewall-fallback": str(exchange.fallback)}
        # Also where a stream was asked for, when the model refuses the body.
        if isinstance(answer.body, bytes):
            content = answer.body if translation is None or answer.status != 200 else translation.whole(answer)
            return Response(content, answer.status, headers | self._pricing.headers(exchange), answer.media_type)

        exchange.status = CLIENT_LEFT  # until the last chunk came

        answer.body = _counted(exchange, answer.body)
        chunks = answer.body if translation is None else translation.events(answer)
        over = partial(self._stream_over, exchange, answer)
        return Events(self._relayed(exchange, chunks, parsed, translation), over, headers)

    async def route(self, parsed: dict[str, Any], headers: Mapping[str, str], key_name: str | None = None) -> list[Decision]:
        """The decisions alone: of a chat's body one, of a completion's one for each of its prompts. Nothing is recorded, but it is
        one of its key's requests a minute.
        """
        text = self._texts.of_either(parsed)
        options = self.names.options(parsed.get("model", FIREWALL), headers, key_name)
        await self._limits.begin(key_name, tokens=0)
        text = await self._texts.decoded(text, parsed)
        if parsed.get("prompt") is not None and not text.texts:
            message = "prompt: must be a text or a list of texts, or token ids that both models can be asked for the text of."
            raise RequestRefused(400, message, code="invalid_type", param="prompt")
        return await self._decide(options, text)

    def checks(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        """What has to answer before clients are let in, by name; each raises what is wrong."""

        async def router() -> None:
            await self._router.decide(["ready?"], None, True, timeout_s=READY_S)

        return {"router": router, **{self.ids[route]: model.check for route, model in self._models.items()}}

    # Decisions -------------------------------------------------------------------------------------------------------

    async def _decide_request(
        self, exchange: Exchange, options: RoutingOptions, text: Text, conversation: Conversation | None
    ) -> Decision:
        """One decision for a request, since one model answers it: the strong one as soon as one of its texts needs it."""
        if options.route is None and (needs_no_router := certain(options.strong_fraction)) is not None:
            decision = needs_no_router
        elif conversation is not None and (known := await self._conversations.recall(conversation)) is not None:
            decision = known.sticky()
        else:
            decisions = await self._decide(options, text, counts=True)
            decisive = next((i for i, each in enumerate(decisions) if each.route == "strong"), 0)
            decision = decisions[decisive]
            if text.texts:
                exchange.text = text.texts[decisive]
            if conversation is not None:
                # What the score chose: in shadow mode, what is done with it is said anew at each turn.
                decision = await self._conversations.decided(conversation, decision)
        if self._serving.shadow is not None and decision.reason in ("score", "sticky", "fraction"):
            decision = decision.shadowed_by(self._serving.shadow)
        return decision

    async def _decide(self, options: RoutingOptions, text: Text, *, counts: bool = False) -> list[Decision]:
        """One decision a text, at least one."""
        if options.route is not None:
            # /v1/route answers for each text, though none of them was looked at.
            return [Decision(options.route, "requested")] * max(1, len(text.texts))
        fraction = options.strong_fraction
        if not text.texts:
            return [certain(fraction) or Decision(self._fail_open, "no-text", strong_fraction=fraction)]
        # A batch has the time of as many requests, but no more than an answer may take.
        timeout_s = min(self._serving.router_timeout_s * len(text.texts), self._serving.answer_timeout_s)
        reason: Reason
        try:
            return await self._router.decide(text.texts, fraction, text.are_questions, counts, timeout_s=timeout_s)
        except TimeoutError:
            reason = "router-timeout"
        except Exception as e:  # whatever befell the router, the models can still answer
            reason = "router-failed"
            logger.warning("The router failed (%s); the request goes to the %s model.", type(e).__name__, self._fail_open)
        return [certain(fraction) or Decision(self._fail_open, reason, strong_fraction=fraction)] * len(text.texts)

    # Answers ---------------------------------------------------------------------------------------------------------

    async def _ask(
        self, exchange: Exchange, decision: Decision, body: bytes, parsed: dict[str, Any], session: str | None, *, streams: bool
    ) -> Answer:
        """The chosen model's answer, or the other's where it gives none and the client did not name it.

        session: of its conversation.
        """
        routes = [decision.route]
        suspect = self._suspects.is_suspect(parsed, decision.route)
        if self._serving.fallback and decision.reason != "requested" and not suspect:
            routes.append(OTHER[decision.route])
        failed: list[ModelUnavailable] = []
        for route in routes:
            stands_in = bool(failed) and route == "strong"
            if stands_in and not await self._stand_ins.may(decision):
                break
            try:
                answer = await self._models[route].ask(exchange.model_endpoint, body, streams=streams, session=session)
            except ModelUnavailable as e:
                failed.append(e)
                exchange.fallback = exchange.fallback or e.why  # of the model that was to answer; the other's is in the message
                if stands_in:
                    self._stand_ins.did_not(decision)
                if e.why == "crashed":
                    # The other model's engine may be next.
                    self._suspects.crashed(parsed, route)
                    break
                continue
            exchange.answered_by = route
            self._stand_ins.settle(decision, route, stood_in=stands_in)
            return answer
        not_asked = self.ids["strong"] if len(failed) < len(routes) else None
        raise no_answer([(self.ids[route], e) for route, e in zip(routes, failed, strict=False)], not_asked)

    async def _relayed(
        self, exchange: Exchange, chunks: AsyncIterator[bytes], parsed: dict[str, Any], translation: Translation | None
    ) -> AsyncIterator[bytes]:
        """The chunks as they come. What fails now ends in an error event: another model's text would corrupt the answer."""
        try:
            async for chunk in chunks:
                yield chunk
            exchange.status = 200
        except Exception as e:
            exchange.status = 502
            logger.warning("The %s model failed in the middle of a stream (%s).", exchange.answered_by, type(e).__name__)
            if isinstance(e, EngineCrashed) and exchange.answered_by is not None:
                self._suspects.crashed(parsed, exchange.answered_by)
            if translation is not None:
                yield translation.failed()
            else:
                yield b"data: " + error_body(502, FAILED, code="model_failed") + b"\n\n"

    async def _stream_over(self, exchange: Exchange, answer: Answer) -> None:
        try:
            if answer.release is not None:
                await answer.release()
        finally:
            exchange.usage = answer.usage
            exchange.client_left = exchange.status == CLIENT_LEFT
            self._close(exchange, exchange.status)

    def _close(self, exchange: Exchange, status: int) -> None:
        self._work.end(exchange.work, exchange.key_name)
        exchange.status = status
        exchange.total_s = exchange.elapsed_s()
        for observer in self._observers:
            try:
                observer.record(exchange)
            except Exception as e:  # it must not, but an answer is worth more than a record of it
                logger.error("%s failed to record a request (%s).", type(observer).__name__, type(e).__name__)


async def _counted(exchange: Exchange, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The model's chunks, before they are put into the words of another API."""
    async for chunk in chunks:
        exchange.num_streamed += num_tokens_in(chunk)
        yield chunk
