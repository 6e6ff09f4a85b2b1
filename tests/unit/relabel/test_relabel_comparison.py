"""The new router against the one in service, with numbers worked out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from handmade import write
from relabel_parts import label, put_router, serve_file, user_config

from firewall_ray.config.run import EvaluationConfig, RunConfig
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores
from firewall_ray.relabel.comparison import compare, is_better, load_comparison, run_comparison
from firewall_ray.relabel.stores import FoldedStore, RoundStore
from firewall_ray.store.layout import ArtifactStore
from serve_app.routing.arms import RouterUserConfig

# 20 queries that only the strong model solves, 20 that both do. Strong calls for the former first: PGR at f = 0, 0.1, ... is
# min(1, 2 f), whose trapezoid is 0.1 (0.2 + 0.4 + 0.6 + 0.8 + 5 + 0.5) = 0.75. The latter first: max(0, 2 f - 1), 0.25.
WEAK = np.repeat([0.0, 1.0], 20)
GOOD, BAD = WEAK.copy(), 1 - WEAK


def held_out(weak: Any = WEAK, strong: Any = None) -> LabelledQueries:
    ids = [f"q{row:02d}" for row in range(len(weak))]
    return LabelledQueries(ids, ids, np.array(["t"] * len(ids)), weak, np.ones(len(ids)) if strong is None else strong, {})


def scores(p_weak: Any) -> RouterScores:
    return RouterScores("any", np.asarray(p_weak, dtype=np.float64), frozenset({"t"}))


def test_a_router_that_ranks_right_is_better_than_one_that_ranks_wrong() -> None:
    found = compare(held_out(), scores(BAD), scores(GOOD), set(), EvaluationConfig())["all"]
    assert found["new"]["apgr"].value == pytest.approx(0.75)
    assert found["in_service"]["apgr"].value == pytest.approx(0.25)
    assert found["difference"]["apgr"].value == pytest.approx(0.5)
    assert is_better(found["difference"]["apgr"])


@pytest.mark.parametrize("new", [GOOD, BAD])
def test_an_equal_or_a_worse_router_is_not_better(new: Any) -> None:
    assert not is_better(compare(held_out(), scores(GOOD), scores(new), set(), EvaluationConfig())["all"]["difference"]["apgr"])


def test_a_gain_that_rests_on_two_queries_is_not_beyond_chance() -> None:
    """The routers differ in the order of two queries, and most resamples lack one of these: (1 - (39/40)^40)^2 = 0.4 have both."""
    almost = GOOD.copy()
    almost[[19, 20]] = 0.6, 0.4
    difference = compare(held_out(), scores(almost), scores(GOOD), set(), EvaluationConfig())["all"]["difference"]["apgr"]
    assert difference.value > 0
    assert not is_better(difference)


@pytest.mark.filterwarnings("ignore::firewall_ray.evaluation.metrics.UndefinedMetricWarning")
def test_where_the_strong_model_is_no_better_nothing_is_decided() -> None:
    found = compare(held_out(strong=WEAK), scores(BAD), scores(GOOD), set(), EvaluationConfig())["all"]["difference"]["apgr"]
    assert np.isnan(found.low)
    assert not is_better(found)


def test_live_queries_and_the_runs_own_are_also_compared_apart() -> None:
    queries = held_out()
    of_run = set(queries.query_ids[5:35])
    found = compare(queries, scores(BAD), scores(GOOD), of_run, EvaluationConfig(num_bootstrap=10))
    assert {part: each["num_queries"] for part, each in found.items()} == {
        "all": 40,
        "the run's test split": 30,
        "live, held out": 10,
    }
    assert found.keys() - compare(queries, scores(BAD), scores(GOOD), set(queries.query_ids), EvaluationConfig()).keys() == {
        "live, held out"
    }


def compared(config: RunConfig, store: ArtifactStore, in_service: Any, new: Any) -> FoldedStore:
    """A whole round whose scores are given; one query is live."""
    queries = held_out()
    rows = [label(i, p, "test", w) for i, p, w in zip(queries.query_ids, queries.prompts, WEAK, strict=True)]
    write(store.labels(), rows[1:])
    folded, round_store = FoldedStore(store.root, "may"), RoundStore(store.root, "may")
    for dataset, counts in (
        (folded.drawn(), {"queries": 5, "distinct": 9}),
        (folded.queries(), {"queries": 3, "not_gradable": 2}),
        (folded.folded(), {"labels": 40, "this_round": 1}),
    ):
        dataset.begin({})
        if dataset.kind == "folded labels":
            write(dataset, rows)
        dataset.finish({}, counts)
    for name, p_weak in (("soft_block", in_service), ("soft_block-may", new)):
        put_router(folded, name)
        write(folded.scores(name), [{"query_id": i, "p_weak": p} for i, p in zip(queries.query_ids, p_weak, strict=True)])
    assert round_store.router("soft_block").path == folded.router("soft_block-may").path
    result = run_comparison(config, store, folded, "soft_block-may", serve_file(config))
    assert result["winner"] == ("soft_block-may" if new is GOOD else "soft_block")
    return folded


def test_a_better_router_is_written_down_with_the_file_that_deploys_it(config: RunConfig, store: ArtifactStore) -> None:
    folded = compared(config, store, BAD, GOOD)
    found = load_comparison(folded)
    assert found["is_better"]
    assert found["held_out"]["all"]["difference"]["apgr"]["value"] == pytest.approx(0.5)
    text = folded.comparison().read_bytes("comparison.md").decode()
    assert "soft_block-may is better: +0.500 [" in text
    assert "| the run's test split | 39 |" in text
    assert "Of 9 distinct queries in the decision log 5 were drawn, 2 of which have no reference" in text
    deployable = yaml.safe_load(folded.comparison().read_bytes("serve_config.yaml"))
    assert user_config(deployable) == RouterUserConfig(
        router="soft_block-may", version="0123456789abcdef", strong_fraction=config.serving.strong_fraction
    )


def test_a_router_that_is_not_better_is_written_down_too_and_leaves_nothing_to_deploy(
    config: RunConfig, store: ArtifactStore
) -> None:
    folded = compared(config, store, GOOD, BAD)
    assert not load_comparison(folded)["is_better"]
    assert "soft_block stays: soft_block-may is worse, -0.500 [" in folded.comparison().read_bytes("comparison.md").decode()
    assert [Path(path).name for path in folded.comparison().files()] == ["comparison.json", "comparison.md"]
