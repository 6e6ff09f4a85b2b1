"""The spans of a router's replica, of requests that share a call."""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from gateway_fakes import Fakes
from otlp_collector import TRACEPARENT, Collector, collected
from test_router_replica import replica

from serve_app import otlp
from serve_app.routing import replica as router_replica
from serve_app.routing.client import DeployedRouter
from serve_app.routing.decision import Decision, DecisionRequest
from serve_app.routing.spans import trace_scoring
from serve_app.tracing import Tracing

CANARY = "Zyxwvutopia"


def test_a_scoring_is_a_child_of_its_request_though_requests_share_the_call(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router is the real one, but for the way to it, and sends its spans when Serve stops it."""
    monkeypatch.setattr(router_replica, "replica_tracing", lambda: otlp.tracing("Router", "router-1"))

    class Handle:
        def __init__(self, decide_all: Callable[..., Any]) -> None:
            self._method = decide_all
            self.decide_all = self
            self.calls: list[list[DecisionRequest]] = []

        def remote(self, requests: list[DecisionRequest], spent: Any) -> asyncio.Task[Any]:
            self.calls.append(pickle.loads(pickle.dumps(requests)))
            return asyncio.create_task(self._method(self.calls[-1], spent))

    async def chats(tracing: Tracing) -> list[list[DecisionRequest]]:
        router = await replica(window=None)
        handle = Handle(router.decide_all)
        fakes = Fakes(DeployedRouter(handle, max_calls=1), tracing=tracing)  # type: ignore[arg-type]
        async with fakes.client() as client:

            async def chat(score: str) -> httpx.Response:
                body = {"model": "firewall", "messages": [{"role": "user", "content": score}]}
                return await client.post("/v1/chat/completions", json=body)

            answers = await asyncio.gather(*(chat(score) for score in ("0.25", "0.75", "0.5")))
        assert [answer.headers["x-firewall-reason"] for answer in answers] == ["score"] * 3
        router.__del__()
        return handle.calls

    calls = collected(lambda tracing: asyncio.run(chats(tracing)))
    assert [len(call) for call in calls] == [1, 2]  # the first alone, and those that came meanwhile
    scorings = {span.attributes["firewall.score"]: span for span in collector.spans if span.name == "score"}
    requests = {span.attributes["firewall.score"]: span for span in collector.spans if span.name != "score"}
    assert scorings.keys() == requests.keys() == {0.25, 0.75, 0.5}
    for score, scoring in scorings.items():
        request = requests[score]
        assert (scoring.trace_id, scoring.parent, scoring.kind) == (request.trace_id, request.span_id, "INTERNAL")
        assert request.times[0] <= scoring.times[0] < scoring.times[1] <= request.times[1]
        assert scoring.attributes["firewall.decided"] == request.attributes["firewall.decided"]
        assert scoring.attributes["firewall.num_requests"] == (1 if score == 0.25 else 2)
        assert scoring.resource["ray.serve.deployment"] == "Router"
    assert len({span.trace_id for span in collector.spans}) == 3


def test_a_text_that_cannot_be_scored_fails_its_own_span_alone(collector: Collector) -> None:
    def score(tracing: Tracing) -> None:
        decided: list[Any] = [RuntimeError(CANARY), [Decision("weak", "score", 0.9), Decision("strong", "score", 0.1)]]
        asked = [DecisionRequest([CANARY] * n, None, True, True, {"traceparent": TRACEPARENT}) for n in (1, 2)]
        trace_scoring(tracing, [*asked, asked[0]._replace(trace=None)], [*decided, []], 5_000, 6_000)

    collected(score)
    failed, fine = collector.spans
    assert (failed.is_error, failed.attributes["error.type"], failed.times) == (True, "RuntimeError", (5_000, 6_000))
    # Of several texts, the one that decides for all.
    assert (fine.is_error, fine.attributes["firewall.score"], fine.attributes["firewall.decided"]) == (False, 0.1, "strong")
    assert CANARY.encode() not in collector.raw[0]
