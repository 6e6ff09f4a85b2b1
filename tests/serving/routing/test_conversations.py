"""A conversation keeps its model (sticky), and shadow mode, where decisions are only recorded."""

import asyncio
from hashlib import sha256
from typing import Any

import httpx
import pytest
from gateway_fakes import FakeRouter, Fakes

from serve_app.routing import conversations
from serve_app.routing.conversations import Conversations, conversation_key, first_turn
from serve_app.routing.decision import Decision

HARD, EASY = "Prove it.", "Thanks!"
WEAK, STRONG = Decision("weak", "score", 0.5, 0.3), Decision("strong", "score", 0.1, 0.3)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def fakes(**serving: Any) -> Fakes:
    """At the default strong fraction, 0.3, HARD goes strong and all else weak."""
    return Fakes(FakeRouter({HARD: 0.1}), sticky=True, **serving)


def turn(served: Fakes, *texts: str, model: str = "firewall", **headers: str) -> tuple[str, str]:
    """(route, reason) of a request with these texts, of the user and the assistant in turns."""
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = served.post("/v1/chat/completions", {"model": model, "messages": messages}, named)
    assert response.status_code == 200, response.text
    return response.headers["x-firewall-route"], response.headers["x-firewall-reason"]


# Sticky --------------------------------------------------------------------------------------------------------------


def test_later_turns_stay_with_the_model_of_the_first() -> None:
    served = fakes()
    assert turn(served, HARD) == ("strong", "score")
    assert turn(served, HARD, "So.", EASY) == ("strong", "sticky")
    assert turn(served, HARD, "So.", EASY, "Welcome.", "Bye!") == ("strong", "sticky")
    assert len(served.router.calls) == 1
    assert turn(served, EASY) == ("weak", "score")


def test_a_turn_that_is_not_remembered_is_decided_by_the_first_text_again() -> None:
    """As on another ingress replica, or after an hour."""
    assert turn(fakes(), HARD, "So.", EASY) == ("strong", "score")
    assert turn(Fakes(FakeRouter({HARD: 0.1})), HARD, "So.", EASY) == ("weak", "score")


def test_a_conversation_stays_when_threshold_and_scores_change() -> None:
    served = fakes()
    turn(served, HARD)
    turn(served, EASY)
    served.router.default_fraction = 0.0
    served.router.scores = {EASY: 0.0}
    assert turn(served, HARD, "So.", "?") == ("strong", "sticky")
    assert turn(served, EASY, "So.", "?") == ("weak", "sticky")
    assert turn(served, "new") == ("weak", "score")


def test_the_header_names_a_conversation_whatever_was_said() -> None:
    served = fakes()
    assert turn(served, HARD, x_firewall_conversation="a") == ("strong", "score")
    assert turn(served, EASY, x_firewall_conversation="a") == ("strong", "sticky")
    assert turn(served, EASY, x_firewall_conversation="b") == ("weak", "score")
    assert turn(served, HARD, x_firewall_conversation="b") == ("weak", "sticky")
    assert turn(served, HARD) == ("strong", "score")


def test_another_fraction_is_another_conversation_by_name_or_by_header() -> None:
    served = fakes()
    assert turn(served, HARD, model="firewall-0.05") == ("weak", "score")
    assert turn(served, HARD) == ("strong", "score")
    assert turn(served, HARD, x_firewall_strong_fraction="0.05") == ("weak", "sticky")
    assert turn(served, HARD, x_firewall_strong_fraction="0.95") == ("strong", "score")


def test_callers_of_other_keys_never_share_a_conversation() -> None:
    keys = [{"name": name, "sha256": sha256(name.encode()).hexdigest()} for name in ("ann", "bob")]
    served = fakes(api_keys=keys)
    as_ann = {"authorization": "Bearer ann", "x_firewall_conversation": "1"}
    as_bob = {"authorization": "Bearer bob", "x_firewall_conversation": "1"}
    assert turn(served, HARD, **as_ann) == ("strong", "score")
    assert turn(served, EASY, **as_bob) == ("weak", "score")
    assert turn(served, EASY, **as_ann) == ("strong", "sticky")
    assert {exchange.key_name for exchange in served.recorder.exchanges} == {"ann", "bob"}


def test_what_a_failing_router_left_open_is_decided_when_it_is_back() -> None:
    served = fakes()
    served.router.error = RuntimeError()
    assert turn(served, HARD) == ("weak", "router-failed")
    served.router.error = None
    assert turn(served, HARD, "So.", EASY) == ("strong", "score")
    assert turn(served, HARD, "So.", EASY) == ("strong", "sticky")


def test_a_fallback_does_not_move_a_conversation() -> None:
    served = fakes()
    served.strong.why = "overloaded"
    assert turn(served, HARD) == ("weak", "score")
    served.strong.why = None
    assert turn(served, HARD, "So.", EASY) == ("strong", "sticky")


def test_completions_and_models_asked_for_by_name_are_no_conversations() -> None:
    served = fakes()
    for _ in range(2):
        response = served.post("/v1/completions", {"model": "firewall", "prompt": HARD}, {"x-firewall-conversation": "a"})
        assert response.headers["x-firewall-reason"] == "score"
        assert turn(served, EASY, model="large", x_firewall_conversation="a") == ("strong", "requested")
    assert turn(served, EASY, x_firewall_conversation="a") == ("weak", "score")


def test_without_sticky_each_turn_is_decided_anew() -> None:
    served = Fakes(FakeRouter({HARD: 0.1}))
    assert turn(served, HARD, x_firewall_conversation="a") == ("strong", "score")
    assert turn(served, HARD, "So.", EASY, x_firewall_conversation="a") == ("weak", "score")


def test_turns_of_one_conversation_that_come_at_once_agree() -> None:
    served = fakes()

    async def ask() -> list[httpx.Response]:
        body = {"model": "firewall", "messages": [user(HARD)]}
        async with served.client() as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(20)))

    assert {response.headers["x-firewall-route"] for response in asyncio.run(ask())} == {"strong"}


# The memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "num"),
    [
        ([user("a"), {"role": "assistant", "content": "b"}, user("c")], 1),
        ([{"role": "system", "content": "s"}, user([{"type": "text", "text": "a"}]), user("c")], 2),
        ([user(None), user([]), user(""), user("a"), user("c")], 4),
        ([{"role": "system", "content": "s"}], 1),
        ([7, None, "x"], 3),
        ([], 0),
    ],
)
def test_the_first_turn_ends_with_the_first_user_text(messages: list[Any], num: int) -> None:
    assert first_turn(messages) == messages[:num]


def test_a_router_for_conversations_reads_the_first_turn_alone() -> None:
    served = fakes(chat_text="conversation")
    messages = [{"role": "system", "content": "Be brief."}, user(HARD), {"role": "assistant", "content": "So."}, user(EASY)]
    served.post("/v1/chat/completions", {"model": "firewall", "messages": messages})
    assert served.router.calls == [([f"Be brief.\n{HARD}"], None, True)]


def test_a_key_parts_conversations_by_all_that_makes_them_differ() -> None:
    keys = [
        conversation_key(*parts)
        for parts in [
            (None, [user("a")], None, None),
            (0.5, [user("a")], None, None),
            (None, [user("b")], None, None),
            (None, [user("a")], "1", None),
            (None, [user("a")], None, "1"),
            (None, [{"role": "system", "content": "s"}, user("a")], None, None),
        ]
    ]
    assert len(set(keys)) == len(keys)
    assert conversation_key(None, [user("b")], "1", None) == keys[3]


def test_a_conversation_is_forgotten_an_hour_after_its_last_turn() -> None:
    now = 0.0
    memory = Conversations(lambda: now)
    memory.remember(b"a", STRONG)
    for minutes in (50, 100, 150):
        now = 60.0 * minutes
        assert memory.recall(b"a") == STRONG
    now = 60.0 * (150 + 61)
    assert memory.recall(b"a") is None


def test_of_too_many_conversations_the_one_not_asked_for_the_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_CONVERSATIONS", 2)
    memory = Conversations()
    memory.remember(b"a", STRONG)
    memory.remember(b"b", WEAK)
    memory.recall(b"a")
    memory.remember(b"c", WEAK)
    assert [memory.recall(key) for key in (b"a", b"b", b"c")] == [STRONG, None, WEAK]


@pytest.mark.parametrize("reason", ["router-timeout", "router-failed", "no-text", "requested"])
def test_only_what_a_score_decided_is_remembered(reason: Any) -> None:
    memory = Conversations()
    memory.remember(b"a", Decision("weak", reason))
    assert memory.recall(b"a") is None


# Shadow --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sticky", [False, True])
def test_in_shadow_mode_one_model_answers_all_and_the_decision_is_only_told(sticky: bool) -> None:
    served = Fakes(FakeRouter({HARD: 0.1}), shadow="weak", sticky=sticky)
    response = served.chat(HARD)
    assert response.json()["model"] == "small"
    headers = response.headers
    assert (headers["x-firewall-route"], headers["x-firewall-reason"], headers["x-firewall-decided"]) == (
        "weak",
        "shadow",
        "strong",
    )
    assert headers["x-firewall-score"] == "0.1"
    assert served.chat(EASY).headers["x-firewall-decided"] == "weak"
    assert served.chat(HARD).headers["x-firewall-decided"] == "strong"
    decided = [exchange.decision and (exchange.decision.route, exchange.decision.decided) for exchange in served.recorder.exchanges]
    assert decided == [("weak", "strong"), ("weak", "weak"), ("weak", "strong")]


def test_in_shadow_mode_the_model_answers_too_when_the_router_cannot_decide() -> None:
    served = Fakes(shadow="weak", fail_open="strong")
    served.router.error = RuntimeError()
    for text, reason in [(HARD, "router-failed"), ("", "no-text")]:
        headers = served.chat(text).headers
        assert (headers["x-firewall-route"], headers["x-firewall-reason"]) == ("weak", reason)


def test_in_shadow_mode_too_a_model_can_be_asked_for() -> None:
    assert Fakes(shadow="weak").chat(HARD, "large").json()["model"] == "large"


def test_a_fallback_in_shadow_mode_still_says_what_the_router_decided() -> None:
    served = Fakes(FakeRouter({HARD: 0.1}), shadow="weak")
    served.weak.why = "dead"
    headers = served.chat(HARD).headers
    assert (headers["x-firewall-route"], headers["x-firewall-decided"], headers["x-firewall-fallback"]) == (
        "strong",
        "strong",
        "dead",
    )
