"""Which queries of the decision log a round labels."""

from collections import Counter
from typing import Any

import pytest
from handmade import write
from hypothesis import given
from hypothesis import strategies as st
from relabel_parts import chat, drawn_questions, finish_labels, label, log

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ArtifactMissing
from firewall_ray.relabel.draw import draw, earlier_rounds, prompt_of, run_draw
from firewall_ray.relabel.stores import RoundStore
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id


def test_a_query_is_drawn_once_however_often_it_was_asked_and_never_when_it_has_a_label(
    config: RunConfig, store: ArtifactStore
) -> None:
    prompt = PROMPT_TEMPLATE.format(question="Old?")
    write(store.labels(), [label("any id", prompt)])  # the run names a benchmark's query by task and question
    completion = "Translate: chat"
    log(store, chat("New?"), chat("New?"), chat("Old?"), (prompt_id(completion), completion), (prompt_id("x"), None), ("?", "Why?"))
    round_store = RoundStore(store.root, "may")
    result = run_draw(config, store, round_store)
    rows = {row["question"]: row["prompt"] for row in round_store.drawn().read().to_pylist()}
    assert rows == {"New?": "Question: New?\nAnswer: ", completion: completion}
    counts = {name: result[name] for name in ("rows", "without_text", "unreadable", "distinct", "labelled_before", "queries")}
    assert counts == {"rows": 6, "without_text": 1, "unreadable": 1, "distinct": 3, "labelled_before": 1, "queries": 2}


def test_a_text_whose_hash_is_not_the_id_has_no_prompt() -> None:
    assert prompt_of(*chat("Why?")) == "Question: Why?\nAnswer: "
    assert prompt_of(prompt_id("Why?"), "Why?") == "Why?"
    assert prompt_of("0123456789abcdef", "Why?") is None


@given(st.lists(st.integers(0, 30)), st.integers(0, 5), st.integers(1, 10), st.randoms())
def test_neither_order_nor_repeats_change_the_draw_and_a_larger_limit_only_adds(
    asked: list[int], seed: int, limit: int, shuffle: Any
) -> None:
    rows = [chat(str(number)) for number in asked]
    few, _ = draw(rows, set(), limit, seed)
    more, _ = draw(rows, set(), limit + 3, seed)
    assert few == more[:limit]
    everything, counts = draw(rows, set(), None, seed)
    assert more == everything[: limit + 3]
    assert len(everything) == counts["distinct"] == len(set(asked))
    shuffle.shuffle(rows)
    assert draw(rows + rows, set(), limit, seed)[0] == few


def test_every_query_has_the_same_chance_whatever_its_share_of_the_traffic() -> None:
    rows = [chat(str(number)) for number in range(6)] + [chat("0")] * 100
    drawn = Counter(query.question for seed in range(3_000) for query in draw(rows, set(), 2, seed)[0])
    assert drawn.total() == 6_000
    assert all(abs(count - 1_000) < 130 for count in drawn.values())  # 5 standard deviations of binomial(3000, 1/3)


def test_what_was_drawn_stays_drawn_while_the_log_grows(config: RunConfig, store: ArtifactStore) -> None:
    write(store.labels(), [label("q", "p")])
    log(store, *(chat(str(number)) for number in range(8)))
    round_store = RoundStore(store.root, "may")
    run_draw(config, store, round_store, limit=3)
    before = drawn_questions(round_store)
    log(store, *(chat(str(number)) for number in range(100)), name="later.parquet")
    assert run_draw(config, store, round_store, limit=3)["action"] == "skip"
    assert drawn_questions(round_store) == before
    assert run_draw(config, store, round_store, limit=3, force=True)["distinct"] == 100


def test_a_later_round_leaves_out_what_an_earlier_one_labelled_of_the_same_pair(config: RunConfig, store: ArtifactStore) -> None:
    write(store.labels(), [label("q", "p")])
    log(store, chat("A?"), chat("B?"), chat("C?"))
    finish_labels(RoundStore(store.root, "april"), [label("a", PROMPT_TEMPLATE.format(question="A?"))])
    finish_labels(RoundStore(store.root, "other"), [label("b", PROMPT_TEMPLATE.format(question="B?"))], weak="middle")
    unfinished = RoundStore(store.root, "unfinished").labels()
    unfinished.begin({})
    round_store = RoundStore(store.root, "may")
    assert run_draw(config, store, round_store)["earlier_rounds"] == ["april"]
    assert drawn_questions(round_store) == {"B?", "C?"}
    assert earlier_rounds(store, config.pair, but="april") == []


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (
            [(prompt_id("x"), None)],
            "of 1 rows 1 have no text, and 0 no text that fits their query_id. Set serving.decision_log.keep",
        ),
        ([chat("Old?")], "all of the 1 queries are labelled already"),
    ],
)
def test_a_log_with_nothing_to_draw_says_why(config: RunConfig, store: ArtifactStore, rows: Any, named: str) -> None:
    write(store.labels(), [label("q", PROMPT_TEMPLATE.format(question="Old?"))])
    log(store, *rows)
    with pytest.raises(ArtifactError, match=named):
        run_draw(config, store, RoundStore(store.root, "may"))
    assert RoundStore(store.root, "may").drawn().state() == "missing"


def test_without_a_log_the_message_names_it(config: RunConfig, store: ArtifactStore) -> None:
    with pytest.raises(ArtifactMissing, match="decisions: nothing at"):
        run_draw(config, store, RoundStore(store.root, "may"))
