"""Rows through a pool of actors that hold a model each, into a dataset; a killed job goes on where it stopped.

Runs in the driver; `actor` runs on a Ray Data actor pool. Ray Data's checkpoint of the ids that are done lies beside the rows
until the dataset is whole.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from pyarrow import fs as pafs
from ray.data.checkpoint import CheckpointConfig
from ray.exceptions import RayError

from firewall_ray.artifacts import Dataset
from firewall_ray.config_base import ActorsConfig
from firewall_ray.errors import ArtifactError, FirewallRayError, SystemFailure
from firewall_ray.progress import watch

CHECKPOINT = "_checkpoint"
WANTED = "_wanted"
MAX_RESTARTS = 3  # of a dead actor; Ray Data's own limit is none, and then a model too large for the memory dies for ever
ROWS_PER_CALL = 256  # also the rows of a file, and what a kill can lose of each actor's work

Actor = Callable[[pa.Table], pa.Table]


def run_actor_stage(
    stage: str, output: Dataset, rows: pa.Table, actor: type[Actor], arguments: tuple[Any, ...], pool: ActorsConfig
) -> None:
    """Write `actor`'s rows for `rows` into `output`, which was begun; rows with a query_id that is done already are left out.

    actor: constructed with `arguments` and a progress counter, to which it adds `{"rows": number}` under the key `stage` after
    each batch; called with a table, it returns as many rows of `output.schema`. Raises what an actor raised where that is one of
    this project's errors, SystemFailure for anything else, ArtifactError where rows are lost or come twice.
    """
    wanted = f"{output.path}/{WANTED}"
    output.filesystem.create_dir(wanted, recursive=True)
    # Ray Data checkpoints pipelines that start from files.
    pq.write_table(rows, f"{wanted}/part-00000.parquet", filesystem=output.filesystem, row_group_size=ROWS_PER_CALL)
    try:
        with watch(stage, {stage: len(rows)}) as progress:
            dataset = ray.data.read_parquet(wanted, filesystem=output.filesystem)
            dataset.context.raise_original_map_exception = True
            dataset.context.checkpoint_config = CheckpointConfig(
                id_column="query_id",
                checkpoint_path=f"{output.path}/{CHECKPOINT}",
                delete_checkpoint_on_success=False,
                override_filesystem=output.filesystem,
            )
            dataset.repartition(target_num_rows_per_block=ROWS_PER_CALL).map_batches(
                actor,
                fn_constructor_args=(*arguments, progress),
                batch_size=ROWS_PER_CALL,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(min_size=pool.replicas.min, max_size=pool.replicas.max),
                num_cpus=pool.num_cpus,
                num_gpus=1 if pool.device == "gpu" else 0,
                max_restarts=MAX_RESTARTS,
                max_task_retries=MAX_RESTARTS,
            ).write_parquet(output.path, filesystem=output.filesystem)
    except RayError as e:
        cause = getattr(e, "cause", None)
        if isinstance(cause, FirewallRayError):
            raise cause from e
        raise SystemFailure(f"{stage}: an actor failed; what is done is kept, run the same command again to go on. {e}") from e
    _check_whole(output, rows["query_id"])
    for folder in (wanted, f"{output.path}/{CHECKPOINT}"):
        if output.filesystem.get_file_info(folder).type == pafs.FileType.Directory:
            output.filesystem.delete_dir(folder)


def _check_whole(output: Dataset, wanted: pa.ChunkedArray) -> None:
    """No row twice, none lost: the promise is checked, not assumed."""
    ids = output.read(["query_id"])["query_id"]
    lost = wanted.filter(pc.invert(pc.is_in(wanted, ids.combine_chunks())))
    if len(lost) or len(ids) != len(wanted):
        raise ArtifactError(
            f"{output.kind}: {output.path} holds {len(ids):,} rows for {len(wanted):,} queries and lacks {len(lost):,}. "
            f"Make it again: {output.made_by} --config FILE --force"
        )
