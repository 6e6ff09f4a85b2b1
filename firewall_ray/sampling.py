"""Sampling: `queries/` in, `samples/<model key>/` out, through Ray Data and an actor pool of inference engines.

Runs in the driver; the engines run on actors (see engines/). The models are sampled side by side, each by a pipeline of
its own, so that the weak model does not wait for the strong one.

Nothing is sampled twice. Ray Data's checkpoint lies beside the rows and is kept: a killed job goes on where it stopped, and
a later job with more queries samples only the new ones.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from pyarrow import fs as pafs
from ray.data import ActorPoolStrategy
from ray.data.checkpoint import CheckpointConfig
from ray.exceptions import RayActorError, RayError, RayTaskError

from firewall_ray.artifacts import ArtifactStore
from firewall_ray.config import ModelConfig, RunConfig, VllmModelConfig, model_path
from firewall_ray.engines.identity import merged, same_samples, sample_settings
from firewall_ray.engines.openai_engine import OpenAISampler, api_key
from firewall_ray.engines.placement import engine_resources, release_placement_groups
from firewall_ray.engines.prompt_length import check_prompt_lengths
from firewall_ray.engines.room import check_room
from firewall_ray.engines.rows import INPUT_COLUMNS, SamplingSpec
from firewall_ray.engines.vllm_engine import VllmSampler
from firewall_ray.errors import ArtifactError, ConfigError, EngineDied
from firewall_ray.job import StageResult
from firewall_ray.progress import watch
from firewall_ray.queries import read_queries, tasks_of
from firewall_ray.query_ids import check_unique, in_buckets, without
from firewall_ray.spill import LocalRows
from firewall_ray.tasks import get_task, known_tasks

logger = logging.getLogger(__name__)

CHECKPOINT = "_checkpoint"  # the ids that are done, Ray Data's own; underscored, so that readers of the rows pass over it
PENDING = ".pending.parquet"  # the ids of rows that are being written
WANTED = "_wanted"  # the queries of the current job, as the pipeline's input


def run_sampling(
    config: RunConfig,
    store: ArtifactStore,
    *,
    models: Sequence[str] | None = None,
    limit: int | None = None,
    force: bool = False,
) -> list[StageResult]:
    """Sample every query with every model of `models` (the pair, when None). One result a model.

    Raises ConfigError for an unknown model key or an engine that no node could hold, ModelError for a model that cannot be
    loaded, TaskError for a prompt that does not fit a model's context, EngineDied when engines keep dying. Rows that were
    written stay written.
    """
    keys = list(models or dict.fromkeys((config.pair.weak, config.pair.strong)))
    for key in keys:
        if key not in config.models:
            raise ConfigError(f"--model {key}: models has only {sorted(config.models)}")
    queries = read_queries(store, limit)
    spec = sampling_spec(config, tasks_of(queries))
    jobs = [SamplingJob(config, store, key, queries, spec, force=force) for key in keys]
    pending = [job for job in jobs if job.action != "skip"]
    for job in pending:  # all of them before the first engine starts: what is wrong shows at once
        job.check()
    if pending:
        totals = {job.key: len(queries) for job in pending}
        done = {job.key: len(queries) - job.num_missing() for job in pending}
        with watch("sample", totals, done) as progress, ThreadPoolExecutor(max_workers=len(pending)) as pool:
            for future in [pool.submit(job.run, progress) for job in pending]:
                future.result()
    return [job.result() for job in jobs]


def sampling_spec(config: RunConfig, tasks: set[str]) -> SamplingSpec:
    """The sampling settings with each task's own `stop` and `max_tokens` where the config leaves them open."""
    sampling, known = config.sampling, known_tasks(config.queries.custom_tasks())
    return SamplingSpec(
        num_samples=sampling.num_samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop={t: tuple(get_task(t, known).stop if sampling.stop is None else sampling.stop) for t in sorted(tasks)},
        max_tokens={t: sampling.max_tokens or get_task(t, known).max_tokens for t in sorted(tasks)},
    )


class SamplingJob:
    """One model's part of the job: decide, check, run, verify."""

    def __init__(
        self, config: RunConfig, store: ArtifactStore, key: str, queries: LocalRows, spec: SamplingSpec, *, force: bool
    ) -> None:
        self.config = config
        self.key = key
        self.model = config.models[key]
        self.queries = queries
        self.spec = spec
        self.samples = store.samples(key)
        self.settings = sample_settings(self.model, spec)
        self.action = self.samples.plan(self.settings, force=force, costly=True, reusable=same_samples(key, self.samples.path))
        if self.action == "skip" and self.num_missing():
            self.action = "resume"

    def check(self) -> None:
        """What can be known to be wrong before an engine starts."""
        check_room(self.key, self.model)
        if isinstance(self.model, VllmModelConfig):
            check_prompt_lengths(self.key, self.model, self.queries, self.spec)
        else:
            api_key(self.key, self.model)

    def run(self, progress: Any) -> None:
        resuming = self.action == "resume"
        self.samples.begin(merged(self.samples.settings() if resuming else None, self.settings), keep_files=resuming)
        wanted = self._write_wanted()
        logger.info("sample: %s of %s with %s", f"{len(self.queries):,} queries", self.key, _engine_words(self.model))
        dataset = ray.data.read_parquet(wanted, filesystem=self.samples.filesystem)
        dataset.context.raise_original_map_exception = True  # Ray Data's own wrapping forgets what was wrong
        dataset.context.checkpoint_config = CheckpointConfig(
            id_column="query_id",
            checkpoint_path=f"{self.samples.path}/{CHECKPOINT}",
            delete_checkpoint_on_success=False,
            override_filesystem=self.samples.filesystem,
        )
        try:
            # Batches of `batch_size` rows are also the files, and what a kill can lose.
            dataset = dataset.repartition(target_num_rows_per_block=self.config.sampling.batch_size)
            dataset = dataset.map_batches(**self._engine_stage(progress))
            dataset.write_parquet(self.samples.path, filesystem=self.samples.filesystem)
        except RayError as e:
            raise self._explain(e) from e
        finally:
            release_placement_groups(self.key)
        self._verify()
        self.samples.filesystem.delete_dir(f"{self.samples.path}/{WANTED}")
        self.samples.finish(self.config.model_dump(mode="json"), self._counts())

    def result(self) -> StageResult:
        counts = self.samples.manifest()["counts"]
        return {"stage": "sample", "model": self.key, "action": self.action, "path": self.samples.path, **counts}

    def _write_wanted(self) -> str:
        """The job's queries as Parquet: Ray Data checkpoints pipelines that start from files."""
        folder = f"{self.samples.path}/{WANTED}"
        self.samples.filesystem.create_dir(folder, recursive=True)
        path = f"{folder}/part-00000.parquet"
        schema = pa.schema([self.queries.schema.field(name) for name in INPUT_COLUMNS])
        with pq.ParquetWriter(path, schema, filesystem=self.samples.filesystem) as writer:
            for batch in self.queries.batches(INPUT_COLUMNS):
                writer.write_batch(batch, row_group_size=self.config.sampling.batch_size)
        return path

    def _engine_stage(self, progress: Any) -> dict[str, Any]:
        sampling = self.config.sampling
        replicas = self.model.replicas
        sampler = VllmSampler if isinstance(self.model, VllmModelConfig) else OpenAISampler
        if isinstance(self.model, VllmModelConfig):
            arguments: tuple[Any, ...] = (
                self.key,
                self.model.model_copy(update={"path": model_path(self.model.path)}),
                self.spec,
                progress,
            )
        else:
            arguments = (self.key, self.model, self.spec, progress, api_key(self.key, self.model))
        return {
            "fn": sampler,
            "fn_constructor_args": arguments,
            "batch_size": sampling.batch_size,
            "batch_format": "pyarrow",
            "zero_copy_batch": True,
            "compute": ActorPoolStrategy(
                min_size=replicas.min,
                max_size=replicas.max,
                max_tasks_in_flight_per_actor=sampling.num_batches_in_flight,
            ),
            "max_concurrency": sampling.num_batches_in_flight,
            "max_restarts": sampling.max_restarts,
            # A row's tries are bounded by its actor's restarts. A number of their own would run out while the actor of a dead node
            # is only "unavailable", before Ray has noticed the death and begins it anew.
            "max_task_retries": -1 if sampling.max_restarts else 0,
            **engine_resources(self.key, self.model),
        }

    def num_missing(self) -> int:
        """How many of the wanted queries are not done; all of them when the samples are made anew.

        Read from the checkpoint, not from the rows: after a kill a file of rows can be cut off until Ray Data cleans it up.
        """
        if self.action == "run":
            return len(self.queries)
        selector = pafs.FileSelector(f"{self.samples.path}/{CHECKPOINT}", allow_not_found=True, recursive=True)
        files = [info.path for info in self.samples.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
        committed = [path for path in files if path.endswith(".parquet") and not path.endswith(PENDING)]
        done = (
            chunk
            for path in committed
            for chunk in pq.read_table(path, columns=["query_id"], filesystem=self.samples.filesystem)["query_id"].chunks
        )
        buckets = in_buckets(len(self.queries), self.queries.column("query_id"), done)
        return sum(len(without(wanted, there)) for wanted, there in buckets)

    def _verify(self) -> None:
        """No row twice, none lost: the promise is checked, not assumed."""
        where = f"samples: {self.samples.path}"
        ids = (batch["query_id"] for batch in self.samples.iter_batches(["query_id"]))
        for wanted, there in in_buckets(len(self.queries), self.queries.column("query_id"), ids):
            check_unique(there, where, "Sample again with --force.")
            if len(lost := without(wanted, there)):
                raise ArtifactError(f"{where} lacks queries, {lost[0].as_py()!r} among them. Run the same command again.")

    def _counts(self) -> dict[str, int]:
        num_rows = num_errors = num_tokens = 0
        for batch in self.samples.iter_batches(["num_generated_tokens", "error"]):
            num_rows += batch.num_rows
            num_errors += batch.num_rows - batch["error"].null_count
            num_tokens += pc.sum(pc.list_flatten(batch["num_generated_tokens"])).as_py() or 0
        if num_errors:
            logger.warning("sample: %s of %s rows of %s have an error", f"{num_errors:,}", f"{num_rows:,}", self.key)
        return {"num_rows": num_rows, "num_errors": num_errors, "num_sampled_tokens": num_tokens}

    def _explain(self, error: RayError) -> Exception:
        """Ray's exception in the words of this project."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, EngineDied):
            reason = str(cause).splitlines()[0]  # Ray Data adds advice on its own retries
            return EngineDied(f"{reason}. What was sampled is kept; run the same command again to go on.")
        if isinstance(cause, RayActorError):
            return EngineDied(
                f"The engine of model {self.key!r} died more than {self.config.sampling.max_restarts} times "
                "(sampling.max_restarts). What was sampled is kept; run the same command again to go on. "
                f"Its log is in the Ray dashboard. Ray says: {cause}"
            )
        return EngineDied(f"Sampling {self.key!r} failed; what was sampled is kept, run the same command again to go on. {error}")


def _engine_words(model: ModelConfig) -> str:
    if isinstance(model, VllmModelConfig):
        parallel = f", TP {model.tensor_parallel_size}" if model.tensor_parallel_size > 1 else ""
        return f"vLLM on {model.device}{parallel}, {model.replicas.min} to {model.replicas.max} engines"
    return f"{model.base_url}"
