"""A pool of actors, and rows streamed through it: Ray Data's actor pool with a journal, an end from outside, words while it waits.

Runs in the driver; the actors on the cluster. It keeps nothing: see `cluster/actor_map.py` for a dataset made of the rows.
"""

import logging
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyarrow as pa
import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from firewall_ray.cluster.journal import Journal
from firewall_ray.cluster.room import Need, actors_need, said_while_waiting
from firewall_ray.cluster.workers import ErrorRows, guarded
from firewall_ray.config.base import ActorsConfig
from firewall_ray.errors import StorageFailure, SystemFailure
from firewall_ray.store.parts import PartsWriter

TORCH_BATCH_ROWS = 256  # several forward passes: sorted by length inside, the more rows the less of them is padding
POLL_S = 0.2

logger = logging.getLogger("firewall_ray")


@dataclass(frozen=True)
class Pool:
    """Actors that do the same. options: what one reserves, in the words of `map_batches` (num_cpus, num_gpus, resources, ...).

    batch_rows: rows in one call, and what a death can cost each batch in flight. batches_in_flight: calls at the same time, of an
    actor that is an async generator. max_restarts: starts of an actor that may follow one another without any row done. need: what
    the first actor takes, to be said while it waits for that.
    """

    min_size: int
    max_size: int
    batch_rows: int
    options: Mapping[str, Any] = field(default_factory=dict)
    batches_in_flight: int = 1
    max_restarts: int = 3
    need: Need | None = None

    @property
    def max_starts(self) -> int:
        """Of all actors together, with no row done between them: the first of each, and `max_restarts` more."""
        return self.max_size * (1 + self.max_restarts)

    def for_rows(self, num_rows: int) -> "Pool":
        """No more actors than batches: each would load its model to do nothing."""
        batches = -(-num_rows // self.batch_rows)
        return replace(self, min_size=min(self.min_size, batches), max_size=min(self.max_size, batches))


def torch_pool(section: str, actors: ActorsConfig, batch_rows: int | None = None) -> Pool:
    """Of actors that hold a torch model each, as the config's `section` says.

    batch_rows: handed over at once, TORCH_BATCH_ROWS when None.
    """
    return Pool(
        min_size=actors.replicas.min,
        max_size=actors.replicas.max,
        batch_rows=batch_rows or TORCH_BATCH_ROWS,
        options={"num_cpus": actors.num_cpus, "num_gpus": 1 if actors.device == "gpu" else 0},
        need=actors_need(section, actors),
    )


def mapped(
    rows: ray.data.Dataset,
    actor: type,
    arguments: Mapping[str, Any],
    pool: Pool,
    stopped: threading.Event,
    writer: PartsWriter | None = None,
    error_rows: ErrorRows | None = None,
) -> Generator[pa.Table, None, None]:
    """The actors' tables as they come, in any order.

    Raises RayError; what the journal says where the pool gave up; and SystemFailure("stopped") once `stopped` is set.
    """
    with _journal(pool) as journal:
        worker, worker_arguments = guarded(actor, journal, arguments, error_rows)
        # A small data set comes as one block, which would keep one actor busy and the others waiting.
        rows = rows.repartition(target_num_rows_per_block=pool.batch_rows)
        tables = rows.map_batches(
            worker,
            fn_constructor_args=worker_arguments,
            batch_size=pool.batch_rows,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                # One batch more than the actor works on lies with it, so that it need not wait for the driver.
                min_size=pool.min_size,
                max_size=pool.max_size,
                max_tasks_in_flight_per_actor=pool.batches_in_flight + 1,
            ),
            **({"max_concurrency": pool.batches_in_flight} if pool.batches_in_flight > 1 else {}),
            # Without end: the journal ends a pool that gets nothing done, and a count over a run's life would end a long one.
            # A task's tries would run out while the actor of a dead node is only "unavailable", before Ray has begun it anew.
            max_restarts=-1,
            max_task_retries=-1,
            **pool.options,
        )
        context = tables.context
        context.raise_original_map_exception = True  # Ray Data's own wrapping forgets what was wrong
        context.max_consecutive_actor_init_deaths = pool.max_starts
        context.execution_no_progress_timeout_s = -1  # an engine may load, or wait for a node, for longer than half an hour
        context.custom_execution_callback_classes = [_Executors]
        with _attended(tables, stopped, writer), _waits_in_words(pool, journal):
            try:
                # Nothing is fetched ahead: a table that is done would wait for the next one, which may take minutes, and a kill.
                yield from tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            except RayError as e:
                # An actor that raised while it was constructed reaches us as its death, without what it raised.
                if (verdict := ray.get(journal.why_ended.remote())) is not None:
                    raise verdict from e
                raise


class _Executors(ExecutionCallback):
    """What executes a dataset now: Ray Data has no other way to be stopped from outside than its executor's `shutdown`.

    A class, known by name: Ray Data pickles it with the context that it hands to the actors, where it does nothing.
    """

    running: ClassVar[dict[str, Any]] = {}  # by the dataset's id, less the number of the execution

    def before_execution_starts(self, executor: Any) -> None:
        self.running[executor._dataset_id.rpartition("_")[0]] = executor


@contextmanager
def _attended(tables: ray.data.Dataset, stopped: threading.Event, writer: PartsWriter | None) -> Iterator[None]:
    """While the body iterates: ends the execution once `stopped` is set, and has rows written that wait for long."""
    # Ray Data puts the number of the execution behind the dataset's id, with an underscore.
    dataset_id = tables.get_dataset_id().rpartition("_")[0]
    ended = threading.Event()

    def attend() -> None:
        while not ended.wait(POLL_S):
            if stopped.is_set() and dataset_id in _Executors.running:
                # By force: else Ray waits for the calls that its actors are in, each of which may take an hour.
                _Executors.running[dataset_id].shutdown(force=True)
            try:
                if writer is not None:
                    writer.tick()
            except StorageFailure as e:  # `add` comes to the same storage, and raises
                logger.warning("%s", e)

    attendant = threading.Thread(target=attend, name="actor-map-attendant", daemon=True)
    attendant.start()
    try:
        yield
        if stopped.is_set():  # an execution that was shut down looks like one that came to its end
            raise SystemFailure("stopped")
    finally:
        ended.set()
        _Executors.running.pop(dataset_id, None)


def _waits_in_words(pool: Pool, journal: Any) -> AbstractContextManager[None]:
    if pool.need is None:
        return nullcontext()
    return said_while_waiting(pool.need, lambda: ray.get(journal.has_started.remote(), timeout=5))


@contextmanager
def _journal(pool: Pool) -> Iterator[Any]:
    """On the driver's node, not on one that may go while the stage goes on."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    journal = ray.remote(num_cpus=0, scheduling_strategy=here)(Journal).remote(pool.max_starts, alive_nodes)
    try:
        yield journal
    finally:
        ray.kill(journal)


def alive_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
