"""What the strong model may answer for the weak one: the fraction is a promise that holds while models are down."""

from typing import Any

import pytest
from gateway_fakes import FakeRouter, Fakes

EASY, HARD = "What is 1 + 1?", "Prove it."
BUDGET = {"budget_control": {"window": 1000}}


def fakes(**serving: Any) -> Fakes:
    return Fakes(FakeRouter({EASY: 0.75, HARD: 0.125}), **serving)


@pytest.mark.parametrize("budget", [{}, BUDGET])
@pytest.mark.parametrize("why", ["overloaded", "dead", "timeout", "failed"])
def test_at_the_fraction_0_the_strong_model_answers_nothing_whatever_befalls_the_weak_one(why: Any, budget: Any) -> None:
    served = fakes(**budget)
    served.weak.why = why
    for _ in range(50):
        response = served.chat(EASY, "firewall-0")
        assert response.status_code in (503, 504)
    assert served.strong.bodies == []
    assert f"small ({why})" in response.json()["error"]["message"]
    assert "large may not answer" in response.json()["error"]["message"]
    assert served.recorder.exchanges[-1].fallback == why


def test_at_a_default_fraction_of_0_it_is_the_same() -> None:
    """Which the ingress learns of with each decision."""
    served = Fakes(FakeRouter(default_fraction=0.0))
    served.weak.why = "overloaded"
    assert served.chat(EASY).status_code == 503
    assert served.strong.bodies == []


@pytest.mark.parametrize(("share", "num_answered"), [(0.005, 5), (0.0, 0), (1.0, 20)])
def test_the_share_that_the_strong_model_may_answer_for_the_weak_one_has_a_cap(share: float, num_answered: int) -> None:
    served = fakes(stand_in_share=share)
    served.weak.why = "overloaded"
    statuses = [served.chat(EASY).status_code for _ in range(20)]
    assert statuses == [200] * num_answered + [503] * (20 - num_answered)
    assert len(served.strong.bodies) == num_answered
    assert served.chat(HARD).status_code == 200  # what a score sends there is no stand-in


def test_with_budget_control_it_answers_as_long_as_there_is_room() -> None:
    served = fakes(**BUDGET)
    served.weak.why, served.router.room = "overloaded", 3
    assert [served.chat(EASY).status_code for _ in range(5)] == [200] * 3 + [503] * 2
    assert served.router.all_spent == []  # the router counted when it allowed it


def test_a_stand_in_that_gave_no_answer_either_is_taken_back() -> None:
    served = fakes(**BUDGET)
    served.weak.why = served.strong.why = "overloaded"
    assert served.chat(EASY).status_code == 503
    assert served.router.all_spent == [(0.3, "weak", "strong")]


def test_the_budget_hears_of_strong_calls_that_were_not_and_of_those_that_no_score_decided() -> None:
    served = fakes(fail_open="strong", **BUDGET)
    served.strong.why = "dead"
    served.chat(HARD)
    served.strong.why = None
    served.router.error = RuntimeError()
    served.chat(EASY, "firewall-0.4")
    served.router.error = None
    served.chat(EASY)
    served.chat(HARD)
    served.chat(HARD, "large")
    assert served.router.all_spent == [(0.3, "weak", "strong"), (0.4, "strong", None)]


def test_a_router_that_does_not_say_allows_nothing() -> None:
    served = fakes(**BUDGET)
    served.weak.why = "dead"

    async def fails(*args: Any) -> bool:
        raise RuntimeError

    served.router.may_stand_in = fails  # type: ignore[method-assign]
    assert served.chat(EASY).status_code == 503
    assert served.strong.bodies == []
