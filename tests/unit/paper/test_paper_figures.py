"""The paper's figures: which number shows what, and its bins against sums by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from handmade import grade, make_config, query, sample, write
from hypothesis import given
from hypothesis import strategies as st
from paper_run import labels_table, paper_config, scores_table, write_run, write_table

from firewall_ray import policy
from firewall_ray.baselines.hybrid_llm_responses import reference_texts
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError
from firewall_ray.evaluation.inputs import read_labels, read_scores
from firewall_ray.paper.artifact import collect
from firewall_ray.paper.bart_accuracy import bin_by_bart_score, draw_queries, qualities_of, why_missing
from firewall_ray.paper.bart_qualities import rows_to_score, run_test_qualities
from firewall_ray.paper.binned import bin_queries, bin_responses, bin_router, equal_count
from firewall_ray.paper.figures import FIGURES, draw_figures
from firewall_ray.paper.rows import METHODS
from firewall_ray.paper.variants import PairStore
from firewall_ray.schemas import LABEL_DESIGNS
from firewall_ray.store.layout import ArtifactStore

# Number, method and pair as the captions of the paper's figures 3 to 18 name them.
CAPTIONS = [
    *[(3, "BartScore, test", "first"), (4, "BartScore, train", "first")],
    *[(5, "Hybrid LLM", "first"), (6, "Hybrid LLM", "second"), (7, "RouteLLM MF", "first"), (8, "RouteLLM MF", "second")],
    *[(9, "Margin Sampling", "first"), (10, "Margin Sampling", "second")],
    *[(11, "Hard Blocking", "first"), (12, "Hard Blocking", "second"), (13, "Soft Blocking", "first")],
    *[(14, "Soft Blocking", "second"), (15, "Weak Pass Rate", "first"), (16, "Strong Pass Rate", "first")],
    *[(17, "Hard Label", "first"), (18, "Hard Blocking w/o SMS", "first")],
]
ROUTERS = {
    "Hybrid LLM": "hybrid_llm_trans",
    "RouteLLM MF": "routellm_mf",
    "Margin Sampling": "margin_sampling",
    "Hard Blocking": "hard_block",
    "Soft Blocking": "soft_block",
    "Weak Pass Rate": "weak_pass_rate",
    "Strong Pass Rate": "strong_pass_rate",
    "Hard Label": "hard_label",
    "Hard Blocking w/o SMS": "hard_block_greedy",
}


# Numbers -------------------------------------------------------------------------------------------------------------


def test_every_number_shows_the_method_pair_and_split_of_the_papers_caption() -> None:
    assert [entry.number for entry in FIGURES] == [number for number, _, _ in CAPTIONS] == list(range(3, 19))
    for entry, (_, name, pair) in zip(FIGURES, CAPTIONS, strict=True):
        assert (entry.pair, entry.split) == (f"{pair} pair", name.partition(", ")[2] or "test")
        if entry.method != "bart_score":
            assert ROUTERS[name] in METHODS[entry.method]


def test_what_a_run_lacks_is_left_out_and_no_number_moves(tmp_path: Path) -> None:
    config = write_run(tmp_path)  # of the figures' routers: soft_block, hard_block, weak_pass_rate
    names = ["soft_block", "hard_block", "weak_pass_rate"]
    numbers = collect(config, ArtifactStore(config.root), names).figures
    assert sorted(numbers.rows) == [11, 12, 13, 14, 15]
    drawings = draw_figures(numbers, config)
    assert [drawing.name.split("_")[1] for drawing in drawings] == [f"{number:02d}" for number in range(3, 19)]
    assert [drawing.figure is not None for drawing in drawings] == [number in numbers.rows for number in range(3, 19)]
    by_number = dict(zip(range(3, 19), drawings, strict=True))
    assert by_number[13].name == "figure_13_soft_block_first"
    assert by_number[14].caption.startswith("Figure 14. Soft Block, second pair. middle-strong, test queries")
    assert "Left out: there is no scores/routellm_mf_published/ (router.designs" in by_number[7].caption
    assert "BARTScores of the test split" in by_number[3].caption


def test_without_a_second_pair_the_even_figures_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path)
    config = paper_config(tmp_path, pairs=[], backbones={})
    numbers = collect(config, ArtifactStore(config.root), ["soft_block", "hard_block"]).figures
    assert sorted(numbers.rows) == [11, 13]
    assert numbers.missing[14] == "paper.pairs names no second pair"


def test_margin_sampling_of_the_second_pair_is_that_pairs_own_or_left_out(tmp_path: Path) -> None:
    config, labels = write_run(tmp_path), labels_table()
    store = ArtifactStore(config.root)
    names = ["soft_block", "hard_block", "margin_sampling"]
    write_table(tmp_path, "scores/margin_sampling", scores_table(labels, noise=5.0, seed=3))
    numbers = collect(config, store, names).figures
    assert 9 in numbers.rows
    assert numbers.missing[10].startswith("there is no pairs/middle-strong/scores/margin_sampling/")
    write_table(tmp_path, "pairs/middle-strong/scores/margin_sampling", scores_table(labels, noise=0.0))
    numbers = collect(config, store, names).figures
    own = PairStore(config.root, config.paper.pairs[0])
    queries, validation = read_labels(own, list(LABEL_DESIGNS))
    wanted = bin_router(queries, read_scores(own, "margin_sampling", queries, validation), config.evaluation)
    assert numbers.rows[10] == {"middle-strong": wanted}


# Bins of queries -----------------------------------------------------------------------------------------------------


def test_queries_are_cut_into_bins_of_equal_count_by_hand() -> None:
    rows = bin_queries(
        p_weak=np.array([0.9, 0.0, 0.91, 0.92, 0.93]),
        pass_rate_weak=np.array([0.5, 0.0, 0.5, 1.0, 1.0]),
        pass_rate_strong=np.array([1.0, 1.0, 0.5, 0.5, 1.0]),
        prompts=list("abcde"),
        num_bins=2,
    )
    # In order of p_weak: b a c | d e. Of equal width, b would be alone.
    assert [row["num_queries"] for row in rows] == [3, 2]
    assert [(row["low"], row["high"]) for row in rows] == [(0.0, 0.91), (0.92, 0.93)]
    assert [row["pass_rate_weak"] for row in rows] == pytest.approx([1 / 3, 1.0])
    assert [row["pass_rate_strong"] for row in rows] == pytest.approx([2.5 / 3, 0.75])
    assert [row["gain"] for row in rows] == pytest.approx([0.5, -0.25])


def test_tied_queries_fall_into_bins_by_their_hash_and_never_by_their_row() -> None:
    prompts = [f"Question {number}" for number in range(8)]
    weak, strong = np.zeros(8), np.array([1.0, 1, 1, 1, 0, 0, 0, 0])  # by row: a gain of 1 on the left and 0 on the right
    rows = bin_queries(np.full(8, 0.5), weak, strong, prompts, num_bins=2)
    first = sorted(range(8), key=lambda row: policy.tie_hash(prompts[row]))[:4]
    assert rows[0]["gain"] == strong[first].mean()
    assert rows[0]["gain"] not in (0.0, 1.0)
    back = np.arange(8)[::-1]
    again = bin_queries(np.full(8, 0.5), weak[back], strong[back], [prompts[row] for row in back], num_bins=2)
    assert again == rows


@given(st.integers(1, 60), st.integers(1, 20))
def test_bins_hold_every_row_once_and_differ_by_one_row_at_most(num_rows: int, num_bins: int) -> None:
    parts = equal_count(np.arange(num_rows), num_bins)
    assert np.concatenate(parts).tolist() == list(range(num_rows))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == min(num_bins, num_rows)


# Bins of responses ---------------------------------------------------------------------------------------------------


def test_responses_are_cut_into_bins_of_equal_count_by_hand() -> None:
    quality, correct = np.array([-1.0, -4.0, -2.0, -3.0]), np.array([True, False, False, True])
    rows = bin_responses(quality, correct, list("abcd"), num_bins=2)
    assert rows == [
        {"low": -4.0, "high": -3.0, "num_responses": 2, "accuracy": 0.5},
        {"low": -2.0, "high": -1.0, "num_responses": 2, "accuracy": 0.5},
    ]


@pytest.fixture
def scored(tmp_path: Path) -> tuple[RunConfig, ArtifactStore]:
    """Two test queries and a train query, two samples each: the weak model's lower BARTScore is right, the strong one's higher."""
    config = make_config(str(tmp_path), evaluation={"num_bins": 2})
    store = ArtifactStore(str(tmp_path))
    ids, splits = ["a", "b", "t"], ["test", "test", "train"]
    labels = labels_table().slice(0, 3)
    for name, column in (("query_id", ids), ("split", splits), ("task", ["tiny_world"] * 3)):
        labels = labels.set_column(labels.schema.get_field_index(name), labels.schema.field(name), pa.array(column))
    write_table(tmp_path, "labels", labels)
    for key, verdicts in (("weak", ("01", "01", "11")), ("strong", ("10", "10", "00"))):
        write(store.grades(key), [grade(i, correct) for i, correct in zip(ids, verdicts, strict=True)])
        for split, kept in (("test", "ab"), ("train", "t")):
            # Of a validation query nothing may be shown, and of a query without a label neither.
            rows = [{"query_id": i, "qualities": [-1.0, -2.0], "greedy_quality": 0.0} for i in (*kept, "no label")]
            write(qualities_of(store, split, key), rows)
    return config, store


def test_figure_3_and_4_show_accuracy_by_bart_score_of_each_model(scored: tuple[RunConfig, ArtifactStore]) -> None:
    config, store = scored
    test, train = (bin_by_bart_score(config, store, split) for split in ("test", "train"))
    assert [row["accuracy"] for row in test["weak"]["tiny_world"]] == [1.0, 0.0]
    assert [row["accuracy"] for row in test["strong"]["tiny_world"]] == [0.0, 1.0]
    assert [(row["low"], row["num_responses"]) for row in test["weak"]["tiny_world"]] == [(-2.0, 2), (-1.0, 2)]
    assert [row["accuracy"] for row in train["weak"]["tiny_world"]] == [1.0, 1.0]


def test_a_bart_score_of_the_first_samples_alone_meets_their_verdicts(scored: tuple[RunConfig, ArtifactStore]) -> None:
    config, store = scored
    write(store.grades("weak"), [grade(i, "0101") for i in "abt"])
    assert [row["accuracy"] for row in bin_by_bart_score(config, store, "test")["weak"]["tiny_world"]] == [1.0, 0.0]
    write(store.grades("weak"), [grade(i, "0") for i in "abt"])
    with pytest.raises(ArtifactError, match=r"has 1 verdicts on query '[ab]', of whose samples 2 have a BARTScore"):
        bin_by_bart_score(config, store, "test")


def test_qualities_that_are_not_there_are_named(tmp_path: Path) -> None:
    config = make_config(str(tmp_path))
    why = why_missing(ArtifactStore(str(tmp_path)), config.pair, "test")
    assert why is not None
    assert why.startswith("baselines/qualities_test/weak/ has no finished BARTScores")


# What is scored for figure 3 -----------------------------------------------------------------------------------------


def test_drawn_are_so_many_queries_of_each_task_whatever_the_order_of_the_rows() -> None:
    rows = pa.table({"query_id": [f"q{n}" for n in range(50)], "task": ["facts"] * 47 + ["sums"] * 3})
    drawn = draw_queries(rows, 10)
    back = draw_queries(rows.take(pa.array(np.arange(50)[::-1])), 10)
    assert sorted(drawn["query_id"].to_pylist()) == sorted(back["query_id"].to_pylist())
    assert sorted(drawn["task"].to_pylist()) == ["facts"] * 10 + ["sums"] * 3
    assert drawn["query_id"].to_pylist()[:10] != [f"q{n}" for n in range(10)]
    assert set(drawn["query_id"].to_pylist()) < set(draw_queries(rows, 20)["query_id"].to_pylist())


def test_a_task_without_texts_to_compare_with_is_left_out_of_figure_3_alone(
    scored: tuple[RunConfig, ArtifactStore], caplog: pytest.LogCaptureFixture
) -> None:
    _, store = scored
    write(store.queries(), [query("a"), query("b"), query("t", split="train")])
    assert sorted(rows_to_score(store, 10)["query_id"].to_pylist()) == ["a", "b"]
    assert len(rows_to_score(store, 1)) == 1
    write(store.queries(), [query("a"), query("b", reference='{"prompt": "def f():", "test": ""}')])
    assert len(rows_to_score(store, 10)) == 0
    assert "figure 3 leaves out tiny_world" in caplog.text


def test_the_canonical_solution_is_a_programming_problems_reference() -> None:
    assert reference_texts("humaneval", {"prompt": "", "test": "", "canonical_solution": "    return 1\n"}) == ["    return 1\n"]


def test_the_test_splits_responses_are_scored_with_hybrid_llm_only(
    scored: tuple[RunConfig, ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = scored
    write(store.queries(), [query("a"), query("b"), query("t", split="train")])
    for key in ("weak", "strong"):
        write(store.samples(key), [sample(i, [f"{key} {i}", "no"]) for i in "abt"])
    asked = []

    def scoring(config: RunConfig, store: ArtifactStore, key: str, dataset: object, responses: object, num: int, *, force: bool):  # type: ignore[no-untyped-def]
        texts = responses()[key].read()["texts"].to_pylist()  # type: ignore[operator]
        asked.append((key, dataset.path, sorted(texts), num, force))  # type: ignore[attr-defined]
        return {}

    monkeypatch.setattr("firewall_ray.paper.bart_qualities.run_qualities", scoring)
    assert len(run_test_qualities(config, store)) == 2
    assert [(key, path.rpartition("baselines/")[2], num, force) for key, path, _, num, force in asked] == [
        ("weak", "qualities_test/weak", 2, False),
        ("strong", "qualities_test/strong", 2, False),
    ]
    assert asked[0][2] == [["weak a", "no"], ["weak b", "no"]]
    without = config.model_copy(update={"baselines": config.baselines.model_copy(update={"names": ["knn"]})})
    assert run_test_qualities(without, store) == []
