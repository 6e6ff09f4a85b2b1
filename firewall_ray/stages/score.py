"""Prompts to scores: every trained router over every query, in one pass.

Rows in: labels/ where it exists, else queries/ (query_id and prompt, all splits). Rows out: scores/<router>/. Runs in the
driver; `ScoringActor` runs on an actor pool (`config.scoring`), each actor holding all the routers.

The pass writes one dataset with a column a router, `scores/_pass`, which is what a killed job goes on with; at the end each column
becomes a dataset of its own.
"""

import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data

from firewall_ray.cluster.actor_map import ActorMap, run_actor_maps
from firewall_ray.cluster.pool import Pool, mapped, torch_pool
from firewall_ray.cluster.progress import watch
from firewall_ray.cluster.room import actors_need, check_room
from firewall_ray.config.router import ScoringConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.router.card import RouterCard, load_card
from firewall_ray.router.predict import RouterPredictor, local_copy
from firewall_ray.stages.stage import Output, Stage, StageResult
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import READ_ROWS, LocalRows
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import check_unique, in_buckets

# Prompts handed to an actor at once, in forward passes. They are sorted by length inside: the more, the less padding.
PASSES_PER_CALL = 16

logger = logging.getLogger("firewall_ray")


class ScoringActor:
    """Rows of (query_id, prompt) to query_id and a float32 column a router. Loads the routers once, when the actor starts."""

    def __init__(self, store: ArtifactStore, routers: Sequence[str], scoring: ScoringConfig, progress: Any) -> None:
        self._progress = progress
        self.predictors: dict[str, RouterPredictor] = {}
        with tempfile.TemporaryDirectory() as cache:
            for name in routers:
                # Read into memory before the folder goes; a local store's router is read where it lies.
                folder = local_copy(store.router(name), f"{cache}/{name}")
                self.predictors[name] = RouterPredictor(
                    folder, batch_size=scoring.batch_size, device=scoring.torch_device, num_threads=scoring.torch_threads
                )

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts = batch["prompt"].to_pylist()
        batch = batch.drop_columns("prompt")
        for name, predictor in self.predictors.items():
            # float32, (num_rows,), in [0, 1].
            batch = batch.append_column(name, pa.array(predictor.predict(prompts), pa.float32()))
        self._progress.add.remote("score", {"rows": len(batch)})
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

    limit: only the first N rows. Raises ArtifactMissing when a router is not trained, or there are no prompts, ConfigError where
    no nodes could ever hold the actors.
    """
    labels = store.labels()
    source = (labels if labels.state() != "missing" else store.queries()).require(["query_id", "prompt"])
    routers = {name: store.router(name).require() for name in (config.router.designs if designs is None else designs)}
    settings = {name: {"router": routers[name].identity(), "prompts": source.identity(), "limit": limit} for name in routers}
    outputs = {name: Output.plan("score", store.scores(name), settings[name], force=force) for name in routers}
    wanted = [name for name, output in outputs.items() if output.is_wanted]
    result = {"stage": "score", "path": f"{store.base}/scores", "routers": list(routers)}
    if not wanted:
        return {**result, "action": "skip", "num_scored": 0}

    check_room(actors_need("scoring", config.scoring))
    rows = _prompts(source, limit)
    work = Output.plan("score", _pass(store, wanted), {name: settings[name] for name in wanted}, force=force, resumes=True)
    for name in wanted:
        outputs[name].begin()
    work.begin()
    scoring = ActorMap(
        key="score",
        output=work.dataset,
        rows=rows,
        actor=ScoringActor,
        arguments={"store": store, "routers": wanted, "scoring": config.scoring},
        pool=_pool(config.scoring),
        name="scoring",
    )
    run_actor_maps("score", [scoring], {"score": len(rows) - scoring.num_missing()})
    for name in wanted:
        output = store.scores(name)
        with output.writer() as writer:
            for batch in work.dataset.iter_batches(["query_id", name]):
                # The router's column becomes `p_weak`.
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=output.schema))
    for name in wanted:
        # All of them last: with one finished, the next run would want fewer routers, and begin the pass anew.
        outputs[name].finish(config, {"queries": len(rows)})
    work.dataset.delete()
    return {**result, "action": work.action, "num_scored": len(rows)}


def _pass(store: ArtifactStore, routers: Sequence[str]) -> Dataset:
    columns = [pa.field(name, pa.float32(), nullable=False) for name in routers]
    # query_id, and float32 in [0, 1] by router.
    schema = pa.schema([pa.field("query_id", pa.string(), nullable=False), *columns])
    return Dataset("scores", f"{store.base}/scores/_pass", store.filesystem, schema, "python jobs/score.py")


def _prompts(source: Dataset, limit: int | None) -> LocalRows:
    """query_id and prompt of the first `limit` rows. Raises ArtifactError for a query_id that comes twice."""
    columns = ["query_id", "prompt"]
    schema = pa.schema([source.schema.field(name) for name in columns])
    rows = LocalRows(_first(source.iter_batches(columns, READ_ROWS), limit), schema)
    for (ids,) in in_buckets(len(rows), rows.column("query_id")):
        check_unique(ids, f"{source.kind}: {source.path}")
    return rows


def _first(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if limit is not None:
            batch = batch.slice(0, limit)
            limit -= batch.num_rows
        yield batch
        if limit == 0:
            return


def _pool(scoring: ScoringConfig) -> Pool:
    return torch_pool("scoring", scoring, PASSES_PER_CALL * scoring.batch_size)


def scored_batches(
    rows: ray.data.Dataset, num_rows: int, store: ArtifactStore, routers: Sequence[str], scoring: ScoringConfig
) -> Iterator[pa.Table]:
    """`rows` (query_id, prompt) through the actor pool, into no dataset: their columns, without `prompt`, and one a router."""
    with watch("score", {"score": num_rows}) as progress:
        arguments = {"store": store, "routers": list(routers), "scoring": scoring, "progress": progress}
        # Nobody stops it from outside: it ends with its reader.
        yield from mapped(rows, ScoringActor, arguments, _pool(scoring), threading.Event())


def card_of(store: ArtifactStore, router: str) -> RouterCard:
    """The card of a finished router in the store. Raises ArtifactMissing or ModelError."""
    return load_card(store.router(router).require())


STAGE = Stage("score", run_scoring, reads=("labels", "queries", "routers"), writes=("scores",), needs_ray=True)
