"""Margin sampling: route by how sure the weak model is of its first token. Nothing is trained.

p_weak = p1 - p2, the probabilities of the two likeliest first tokens of the weak model's greedy answer (Scheffer et al. 2001,
"Active hidden Markov models for information extraction", the margin between the best and the second best hypothesis). Unlike
every other router here it needs the weak model's forward pass over the prompt before it can decide.

Rows in: labels/ (query_id) and samples/<weak>/ (greedy_margin). Rows out: SCORES. Runs in the driver.
"""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.errors import ArtifactError
from firewall_ray.schemas import SCORES

logger = logging.getLogger("firewall_ray")


def margin_scores(query_ids: pa.ChunkedArray, samples: pa.Table, where: str) -> pa.Table:
    """A score for each query from the weak model's samples (query_id, greedy_margin in [0, 1]); `where` names these in messages.

    An answer without any token has no margin: it scores 0, as the least sure. Raises ArtifactError for a query without samples,
    for a margin outside [0, 1], and when there are no margins at all.
    """
    rows = pc.index_in(query_ids, value_set=samples["query_id"].combine_chunks())
    if rows.null_count:
        missing = query_ids[pc.index(rows.is_null(), True).as_py()].as_py()
        raise ArtifactError(f"{where} lacks query {missing!r} ({rows.null_count:,} such). Sample it: python jobs/sample.py")
    found = samples["greedy_margin"].take(rows)
    if found.null_count == len(found):
        raise ArtifactError(
            f"{where} has no greedy_margin in any row: whoever served the model gave no log probabilities. Leave margin_sampling "
            "out of baselines.names, or sample with a server that returns logprobs."
        )
    if found.null_count:
        logger.warning("margin_sampling: %s answers without a token score 0.", f"{found.null_count:,}")
    # float32, (num_queries,). Never dropped: a router must have scored all test queries of a task, or the report refuses it.
    margins = pc.fill_null(found, 0.0).to_numpy()
    # Not (< 0) or (> 1): a NaN is neither, and is found like this.
    wrong = np.flatnonzero(~((margins >= 0) & (margins <= 1)))
    if len(wrong):
        raise ArtifactError(
            f"{where}: greedy_margin is {margins[wrong[0]]} for query {query_ids[int(wrong[0])].as_py()!r}; it must lie in [0, 1]."
        )
    return pa.table({"query_id": query_ids, "p_weak": margins.astype(np.float32)}, schema=SCORES)
