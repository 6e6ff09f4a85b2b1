import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from firewall_ray.baselines.margin_sampling import margin_scores
from firewall_ray.engines.vllm import top2_margin
from firewall_ray.errors import ArtifactError
from firewall_ray.schemas import SCORES


def samples(margins: dict[str, float | None]) -> pa.Table:
    columns = {"query_id": [*margins], "greedy_margin": pa.array(margins.values(), pa.float32())}
    return pa.table(columns)


def ids(*query_ids: str) -> pa.ChunkedArray:
    return pa.chunked_array([query_ids], pa.string())


def test_the_ranking_is_that_of_the_logged_top_2_probabilities() -> None:
    # What the engine logs: log probabilities of the likeliest first tokens, in no particular order.
    logged = {"sure": [0.05, 0.9], "torn": [0.41, 0.40], "flat": [0.1, 0.08], "clear": [0.6, 0.3]}
    margins = {
        query: top2_margin([{token: SimpleNamespace(logprob=math.log(p)) for token, p in enumerate(probabilities)}])
        for query, probabilities in logged.items()
    }
    table = margin_scores(ids(*logged), samples(margins), "samples")
    assert table.schema == SCORES
    np.testing.assert_allclose(table["p_weak"].to_numpy(), [0.85, 0.01, 0.02, 0.3], atol=1e-6)


def test_scores_follow_the_labels_whatever_the_order_of_the_samples() -> None:
    table = margin_scores(ids("b", "a"), samples({"a": 0.25, "b": 0.5, "other": 1.0}), "samples")
    assert table.to_pylist() == [{"query_id": "b", "p_weak": 0.5}, {"query_id": "a", "p_weak": 0.25}]


def test_an_answer_without_a_token_is_the_least_sure() -> None:
    assert margin_scores(ids("a", "b"), samples({"a": None, "b": 0.5}), "samples")["p_weak"].to_pylist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ({"a": 0.5}, r"samples lacks query 'b' \(1 such\)"),
        ({"a": None, "b": None}, "no greedy_margin in any row"),
        ({"a": 0.5, "b": 1.5}, r"greedy_margin is 1\.5 for query 'b'"),
        ({"a": 0.5, "b": math.nan}, "greedy_margin is nan for query 'b'"),
    ],
)
def test_samples_that_do_not_fit_are_refused(margins: dict[str, float | None], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        margin_scores(ids("a", "b"), samples(margins), "samples")
