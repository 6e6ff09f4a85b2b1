"""samples/ -> baselines/qualities_test/<model>/: the BARTScore of both models' responses to test queries, for figure 3 alone.

Hybrid LLM never looks at the test split, so this is a stage of its own, over a drawn part of it. Runs in the driver; the scoring on
the actor pool of `baselines/hybrid_llm_stages.py`, which goes on where it stopped.
"""

import functools
import json
import logging

import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.baselines.hybrid_llm_responses import read_responses, reference_texts
from firewall_ray.baselines.hybrid_llm_stages import run_qualities
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.paper.bart_accuracy import LABEL_COLUMNS, draw_queries, qualities_of
from firewall_ray.schemas import HYBRID_DESIGNS
from firewall_ray.stages.stage import StageResult
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore

logger = logging.getLogger("firewall_ray")


def run_test_qualities(config: RunConfig, store: ArtifactStore) -> list[StageResult]:
    """A result a model of the pair; none without Hybrid LLM in `baselines.names`, whose BART this is, or without a test query."""
    if not set(HYBRID_DESIGNS) & set(config.baselines.names):
        return []
    rows = rows_to_score(store, config.paper.bart_score_queries)
    if not len(rows):
        return []
    keys = (config.pair.weak, config.pair.strong)

    @functools.cache
    def responses() -> dict[str, LocalRows]:
        # As many as Hybrid LLM scores of the train split, which figure 4 shows.
        how_many = config.baselines.bart_score.max_references, config.baselines.hybrid_llm.num_responses
        return {key: read_responses(store, key, rows, *how_many) for key in keys}

    return [run_qualities(config, store, key, qualities_of(store, "test", key), responses, len(rows), force=False) for key in keys]


def rows_to_score(store: ArtifactStore, per_task: int) -> pa.Table:
    """query_id, task and split of the drawn test queries of every task that has texts to compare responses with."""
    labels = store.labels().require(LABEL_COLUMNS).read(LABEL_COLUMNS)
    rows = draw_queries(labels.filter(pc.equal(labels["split"], "test")), per_task)
    ids, queries = rows["query_id"].combine_chunks(), store.queries().require(["query_id", "task", "reference"])
    without: set[str] = set()
    for batch in queries.iter_batches(["query_id", "task", "reference"]):
        for row in batch.filter(pc.is_in(batch["query_id"], ids)).to_pylist():
            try:
                reference_texts(row["task"], json.loads(row["reference"]))
            except ConfigError:  # for Hybrid LLM, which trains on every task; a figure does without the task
                without.add(row["task"])
    if without:
        logger.warning(
            "qualities: figure 3 leaves out %s: the references in queries/ hold no text to compare a response with.",
            ", ".join(sorted(without)),
        )
    return rows.filter(pc.invert(pc.is_in(rows["task"], pa.array(sorted(without), pa.string()))))
