"""Prompts to scores: every trained router over every query, in one pass.

Rows in: labels/ where it exists, else queries/ (query_id and prompt, all splits). Rows out: scores/<router>/. Runs in the
driver; `ScoringActor` runs on a Ray Data actor pool (`config.scoring`), each actor holding all the routers.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import ray.data

from firewall_ray.artifacts import ArtifactStore, Dataset
from firewall_ray.config import RunConfig, ScoringConfig
from firewall_ray.router.card import RouterCard, load_card
from firewall_ray.router.predict import RouterPredictor, local_copy

# Prompts handed to an actor at once, in forward passes. They are sorted by length inside: the more, the less padding.
PASSES_PER_CALL = 16

logger = logging.getLogger("firewall_ray")
StageResult = dict[str, Any]


class ScoringActor:
    """Adds a float32 column a router to a batch with a `prompt` column. Loads the routers once, when the actor starts."""

    def __init__(self, store: ArtifactStore, routers: Sequence[str], scoring: ScoringConfig) -> None:
        self.predictors: dict[str, RouterPredictor] = {}
        with tempfile.TemporaryDirectory() as cache:
            for name in routers:
                folder = local_copy(store.router(name), f"{cache}/{name}")
                self.predictors[name] = RouterPredictor(
                    folder, batch_size=scoring.batch_size, device=scoring.torch_device, num_threads=scoring.torch_threads
                )

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts = batch["prompt"].to_pylist()
        batch = batch.drop_columns("prompt")
        for name, predictor in self.predictors.items():
            batch = batch.append_column(name, pa.array(predictor.predict(prompts), pa.float32()))
        return batch


def run_scoring(
    config: RunConfig,
    store: ArtifactStore,
    *,
    limit: int | None = None,
    force: bool = False,
    designs: Sequence[str] | None = None,
) -> StageResult:
    """Score with the router of every design in `designs` (`config.router.designs`, when None).

    limit: only the first N rows. Raises ArtifactMissing when a router is not trained, or there are no prompts.
    """
    labels = store.labels()
    source = (labels if labels.state() != "missing" else store.queries()).require(["query_id", "prompt"])
    routers = {name: store.router(name).require() for name in (config.router.designs if designs is None else designs)}
    settings = {name: {"router": routers[name].identity(), "prompts": source.identity(), "limit": limit} for name in routers}
    actions = {name: store.scores(name).plan(settings[name], force=force) for name in routers}
    wanted = [name for name, action in actions.items() if action != "skip"]
    result = {"stage": "score", "path": f"{store.base}/scores", "routers": list(routers)}
    if not wanted:
        return {**result, "action": "skip", "num_scored": 0}

    rows = ray.data.read_parquet(source.files(), filesystem=source.filesystem, columns=["query_id", "prompt"], file_extensions=None)
    rows.context.execution_options.preserve_order = True
    if limit is not None:
        rows = rows.limit(limit)
    for name in wanted:
        store.scores(name).begin(settings[name])
    num_rows = _write(scored_batches(rows, store, wanted, config.scoring), {name: store.scores(name) for name in wanted})
    for name in wanted:
        store.scores(name).finish(config.model_dump(mode="json"), {"queries": num_rows})
    return {**result, "action": "run", "num_scored": num_rows}


def scored_batches(
    rows: ray.data.Dataset, store: ArtifactStore, routers: Sequence[str], scoring: ScoringConfig
) -> Iterator[pa.Table]:
    """Stream `rows` through the actor pool: their columns, without `prompt`, and a float32 column a router."""
    # A small data set comes as one block, which would occupy one actor while the others wait.
    rows = rows.repartition(target_num_rows_per_block=PASSES_PER_CALL * scoring.batch_size)
    scored = rows.map_batches(
        ScoringActor,
        fn_constructor_args=(store, list(routers), scoring),
        batch_size=PASSES_PER_CALL * scoring.batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=scoring.replicas.min, max_size=scoring.replicas.max),
        num_cpus=scoring.num_cpus,
        num_gpus=1 if scoring.device == "gpu" else 0,
    )
    yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")


def _write(batches: Iterator[pa.Table], outputs: dict[str, Dataset]) -> int:
    num_rows = 0
    with ExitStack() as stack:
        writers = {name: stack.enter_context(dataset.writer()) for name, dataset in outputs.items()}
        for batch in batches:
            for name, writer in writers.items():
                columns = [batch["query_id"].cast(pa.string()), batch[name]]
                writer.write_table(pa.Table.from_arrays(columns, schema=outputs[name].schema))
            num_rows += len(batch)
            logger.info("score: %d queries done", num_rows)
    return num_rows


def card_of(store: ArtifactStore, router: str) -> RouterCard:
    """The card of a finished router in the store. Raises ArtifactMissing or ModelError."""
    return load_card(store.router(router).require())
