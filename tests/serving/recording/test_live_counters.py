"""What GET /stats answers."""

import asyncio
from typing import Any

import pytest
from gateway_fakes import FakeRouter, Fakes

from firewall_ray.config.serving import Route
from serve_app.recording.counters import LiveCounters
from serve_app.recording.exchange import Exchange
from serve_app.routing.decision import Arm, Decision

PRICES = {"weak": {"prompt": 1, "completion": 2}, "strong": {"prompt": 10, "completion": 30}}


def stats(fakes: Fakes) -> Any:
    async def get() -> Any:
        async with fakes.client() as client:
            return (await client.get("/stats")).raise_for_status().json()

    return asyncio.run(get())


def test_a_replica_that_answered_nothing_has_no_rates() -> None:
    found = stats(Fakes())
    assert (found["requests"], found["routed"], found["by_route"]) == (0, 0, {"weak": 0, "strong": 0})
    assert found["strong_fraction"] is found["target_strong_fraction"] is found["estimated_saving_usd"] is None
    assert found["latency_s"] == found["router_s"] == {"p50": None, "p90": None}


def test_the_counters_add_up() -> None:
    fakes = Fakes(FakeRouter({"hard": 0.1}), prices=PRICES)
    for text in ["easy", "easy", "easy", "hard"]:
        fakes.chat(text, max_tokens=5)  # the fake counts these as the prompt's, and 3 words of answer
    fakes.chat(model="small", max_tokens=5)
    fakes.chat(model="gpt-4")
    fakes.strong.why = "dead"
    fakes.chat("hard", max_tokens=5)
    found = stats(fakes)
    assert (found["replica"], found["requests"], found["routed"]) == ("local", 7, 5)
    assert found["by_status"] == {"200": 6, "404": 1}
    assert found["by_reason"] == {"score": 5, "requested": 1}
    assert found["chosen"] == {"weak": 3, "strong": 2}
    assert found["by_route"] == {"weak": 5, "strong": 1}  # three chosen, one asked for, one instead of the dead strong one
    assert (found["strong_fraction"], found["target_strong_fraction"]) == (2 / 5, pytest.approx(0.3))
    assert (found["fallbacks"], found["strong_calls_avoided"]) == (1, 3)
    assert found["tokens"] == {"weak": {"prompt": 25, "completion": 15}, "strong": {"prompt": 5, "completion": 3}}
    # Three avoided calls: 5 prompt tokens at 10 - 1 and 3 of completion at 30 - 2 dollars a million: 45 + 84 millionths each.
    assert found["estimated_saving_usd"] == pytest.approx(3 * 129e-6)
    # By rank the medians are of different requests: the one that named its model never waited for the router.
    assert 0 < found["router_s"]["p90"] <= found["latency_s"]["p90"]


def test_percentiles_are_nearest_ranks_of_answers_that_came_to_their_end() -> None:
    counters = LiveCounters()
    decision = Decision("weak", "requested")
    for total_s in [0.4, 0.1, 0.3, 0.2, 0.5, 0.6, 0.7, 1.0, 0.9, 0.8]:
        counters.record(Exchange("chat", decision=decision, answered_by="weak", status=200, total_s=total_s))
    counters.record(Exchange("chat", decision=decision, answered_by="weak", status=499, total_s=99.0, client_left=True))
    assert counters.snapshot()["latency_s"] == {"p50": 0.5, "p90": 0.9}


def test_nothing_that_a_client_wrote_is_in_the_counters() -> None:
    fakes = Fakes()
    fakes.chat("Zyxwvutopia")
    fakes.chat("Zyxwvutopia", model="Zyxwvutopia")
    assert "Zyxwvutopia" not in str(stats(fakes))


def test_the_canary_stands_beside_the_router_from_its_first_request_on() -> None:
    counters = LiveCounters(is_priced=True)

    def decided(arm: Arm, route: Route, target: float, status: int = 200) -> None:
        decision = Decision(route, "score", 0.5, 0.4, f"of-{arm}", False, target, arm=arm)
        counters.record(Exchange("chat", decision=decision, answered_by=route, status=status, total_s=0.2, cost_usd=0.004))

    decided("main", "strong", 0.3)
    assert counters.snapshot()["arms"] is None
    decided("canary", "strong", 0.5)
    decided("main", "weak", 0.3)
    decided("canary", "weak", 0.5, status=503)
    counters.record(Exchange("chat", decision=Decision("weak", "requested"), answered_by="weak", status=200))
    priced = {"usd_per_1000_requests": pytest.approx(4), "latency_s": {"p50": 0.2, "p90": 0.2}}
    assert counters.snapshot()["arms"] == {
        "main": {"router": "of-main", "requests": 1, "failed": 0, "strong_fraction": 0, "target_strong_fraction": 0.3, **priced},
        "canary": {
            "router": "of-canary",
            "requests": 2,
            "failed": 1,
            "strong_fraction": 0.5,
            "target_strong_fraction": 0.5,
            **priced,
        },
    }


@pytest.mark.parametrize(
    ("num_strong", "num", "differs"),
    [
        # Of 1,000 at 0.3 the standard error is sqrt(0.3 * 0.7 / 1,000) = 0.0145, three of them 0.0435.
        (802, 1_000, True),
        (344, 1_000, True),
        (343, 1_000, False),
        (257, 1_000, False),
        (256, 1_000, True),
        # Of 100 they are 0.1375.
        (44, 100, True),
        (43, 100, False),
        (29, 29, False),  # too few to say
    ],
)
def test_traffic_differs_where_the_share_is_further_from_its_target_than_chance(num_strong: int, num: int, differs: bool) -> None:
    counters, held = LiveCounters(), LiveCounters(holds_budget=True)
    for i in range(num):
        decision = Decision("strong" if i < num_strong else "weak", "score", 0.5, 0.5, "v1", False, 0.3)
        for each in (counters, held):
            each.record(Exchange("chat", decision=decision, answered_by=decision.route, status=200))
    assert counters.snapshot()["traffic_differs"] is differs
    assert held.snapshot()["traffic_differs"] is False  # budget control is about to bring it back


def test_a_share_that_is_surely_off_by_less_than_two_points_is_on_target() -> None:
    counters = LiveCounters()
    for i in range(1_000):
        decision = Decision("strong" if i < 15 else "weak", "score", 0.5, 0.5, "v1", False, 0.001)
        counters.record(Exchange("chat", decision=decision, answered_by=decision.route, status=200))
    assert counters.snapshot()["traffic_differs"] is False  # 1.5% for 0.1%: fourteen standard errors
