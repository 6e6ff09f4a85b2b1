"""The last decisions of GET /stats: whose they are, how many, and what they may hold."""

import asyncio
import math
import sys
from hashlib import sha256
from typing import Any

from gateway_fakes import FakeRouter, Fakes
from pydantic_core import to_json

from serve_app.recording.exchange import Exchange
from serve_app.recording.last_decisions import KEPT, SHOWN, TEXT_CHARACTERS, LastDecisions
from serve_app.routing.decision import Decision

PRICES = {"weak": {"prompt": 1, "completion": 2}, "strong": {"prompt": 10, "completion": 30}}
KEYS = [{"name": name, "sha256": sha256(f"fw-{name}".encode()).hexdigest()} for name in ("ann", "bob")]


def last(fakes: Fakes, key: str | None = None) -> list[dict[str, Any]]:
    async def get() -> Any:
        async with fakes.client() as client:
            return (await client.get("/stats", headers=bearer(key))).raise_for_status().json()

    decisions: list[dict[str, Any]] = asyncio.run(get())["last_decisions"]
    return decisions


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer fw-{key}"}


def exchange(text: str | None = None, key_name: str | None = None, decision: Decision | None = None) -> Exchange:
    decided = decision or Decision("weak", "score", 0.9, 0.3, "v1", False, 0.3)
    return Exchange("chat", key_name=key_name, text=text, decision=decided, answered_by="weak", status=200)


def test_a_decision_is_told_with_its_reason_and_with_what_became_of_it() -> None:
    fakes = Fakes(FakeRouter({"hard": 0.1}), prices=PRICES)
    fakes.chat("hard", max_tokens=5)
    fakes.strong.why = "dead"
    fakes.chat("hard", max_tokens=5)
    fakes.chat(model="small", max_tokens=5)
    fakes.chat(model="gpt-4")  # refused before a decision
    told = last(fakes)
    began = [row.pop("time") for row in told]
    assert began == sorted(began, reverse=True)
    by_score = {"route": "strong", "reason": "score", "score": 0.1, "threshold": 0.3, "status": 200, "arm": "main"}
    by_name = {"route": "weak", "reason": "requested", "score": None, "threshold": None, "status": 200, "arm": "main"}
    # 5 prompt tokens at 1 and 3 of completion at 2 dollars a million are 11 millionths, at 10 and 30 they are 140.
    assert told == [
        {**by_name, "answered_by": "weak", "fallback": None, "cost_usd": 11e-6},
        {**by_score, "answered_by": "weak", "fallback": "dead", "cost_usd": 11e-6},
        {**by_score, "answered_by": "strong", "fallback": None, "cost_usd": 140e-6},
    ]


def test_what_nobody_answered_is_told_too() -> None:
    fakes = Fakes()
    fakes.weak.why = fakes.strong.why = "overloaded"
    fakes.chat()
    (row,) = last(fakes)
    assert (row["route"], row["answered_by"], row["fallback"], row["status"]) == ("weak", None, "overloaded", 503)


def test_at_the_fractions_0_and_1_the_threshold_is_null() -> None:
    fakes = Fakes()
    fakes.chat(model="firewall-1")
    (row,) = last(fakes)  # JSON has no infinity
    assert (row["reason"], row["route"], row["threshold"]) == ("fraction", "strong", None)


def test_a_key_sees_its_own_decisions_and_nothing_of_others() -> None:
    fakes = Fakes(api_keys=KEYS, decision_log={"keep_text": True})
    fakes.chat("of ann", headers=bearer("ann"))
    fakes.chat("of bob", headers=bearer("bob"))
    assert [row["text"] for row in last(fakes, "ann")] == ["of ann"]
    assert [row["text"] for row in last(fakes, "bob")] == ["of bob"]
    assert fakes.counters.snapshot(None)["last_decisions"] == []  # nobody is asked for so, but then nobody's


def test_texts_are_shown_only_where_they_are_kept() -> None:
    for serving, shown in (({}, None), ({"decision_log": {}}, None), ({"decision_log": {"keep_text": True}}, "Why?")):
        fakes = Fakes(**serving)
        fakes.chat("Why?")
        assert last(fakes)[0].get("text") == shown


def test_the_last_come_first_and_are_no_more_than_are_shown() -> None:
    decisions = LastDecisions(keeps_text=True)
    for i in range(SHOWN + 5):
        decisions.add(exchange(str(i)))
    assert [row["text"] for row in decisions.of(None)] == [str(i) for i in range(SHOWN + 4, 4, -1)]


def test_memory_and_answer_are_bounded_whatever_is_asked() -> None:
    decisions = LastDecisions(keeps_text=True)
    text = "𝄞" * 100_000
    for i in range(3 * KEPT):
        decisions.add(exchange(text, key_name=f"key-{i % 500}", decision=Decision("weak", "fraction", threshold=-math.inf)))
    rows = [row for i in range(500) for row in decisions.of(f"key-{i}")]
    assert len(rows) == KEPT
    assert {len(row["text"]) for row in rows} == {TEXT_CHARACTERS}
    assert sum(sys.getsizeof(row) + sys.getsizeof(row["text"]) for row in rows) < 2 * 2**20

    for _ in range(SHOWN):
        decisions.add(exchange(text))
    assert len(to_json(decisions.of(None))) < 20_000
