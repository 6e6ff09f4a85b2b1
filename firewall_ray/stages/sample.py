"""Sampling: `queries/` in, `samples/<model key>/` out, through an actor pool of inference engines for each model.

Runs in the driver; the engines run on actors (see engines/). The models are sampled side by side, so that the weak model does not
wait for the strong one. Nothing is sampled twice: a killed job goes on where it stopped, and a later job with more queries samples
only the new ones.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from firewall_ray.cluster.actor_map import ActorMap, run_actor_maps
from firewall_ray.cluster.pool import Pool
from firewall_ray.cluster.workers import error_rows_of
from firewall_ray.config.models import ModelConfig, VllmModelConfig, model_path
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.identity import merged, same_samples, sample_settings
from firewall_ray.engines.openai import OpenAISampler, api_key
from firewall_ray.engines.placement import engine_resources, release_placement_groups
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.engines.prompt_length import check_prompt_lengths
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.engines.room import check_room, engine_need
from firewall_ray.engines.rows import INPUT_COLUMNS, SamplingSpec, error_row
from firewall_ray.engines.vllm import VllmSampler
from firewall_ray.errors import ConfigError
from firewall_ray.schemas import SAMPLES
from firewall_ray.stages.prepare_queries import read_queries, tasks_of
from firewall_ray.stages.sampling_size import rate_of_run, size_words
from firewall_ray.stages.stage import Output, Stage, StageResult
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.parts import ids_without_error
from firewall_ray.tasks import get_task, known_tasks

logger = logging.getLogger("firewall_ray")


def run_sampling(
    config: RunConfig,
    store: ArtifactStore,
    *,
    models: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    force: bool = False,
    retry_errors: bool = False,
) -> list[StageResult]:
    """Sample every query with every model of `models` (the pair, when None). One result a model.

    splits: only queries of these. The samples are finished then; a later job with all splits samples the rest.
    retry_errors: also those whose row has an error, which keep their place until a new row is there.

    Raises ConfigError for an unknown model key or an engine that no node could hold, ModelError for a model that cannot be
    loaded, TaskError for a prompt that does not fit a model's context, EngineDied when engines keep dying. Rows that were
    written stay written.
    """
    # A pair of one model with itself has one key.
    keys = list(dict.fromkeys(models or (config.pair.weak, config.pair.strong)))
    for key in keys:
        if key not in config.models:
            raise ConfigError(f"--model {key}: models has only {sorted(config.models)}")
    queries = read_queries(store, limit, splits)
    jobs = [SamplingJob(config, store, key, queries, force=force, retry_errors=retry_errors) for key in keys]
    return run_jobs("sample", jobs)


def run_jobs(stage: str, jobs: Sequence["SamplingJob"]) -> list[StageResult]:
    """Those that have something to do, side by side. A result for each."""
    pending = [job for job in jobs if job.output.is_wanted]
    for job in pending:  # all of them before the first engine starts: what is wrong shows at once
        job.check()
    done = {job.key: job.begin() for job in pending}
    try:
        run_actor_maps(stage, [job.map for job in pending], done)
    finally:
        for job in pending:
            # Also after an error: Ray keeps a group for as long as its job lasts, and in it the GPUs.
            release_placement_groups(job.key)
    return [job.output.result() for job in jobs]


def sampling_spec(config: RunConfig, tasks: set[str], prompt: PromptFormat) -> SamplingSpec:
    """The sampling settings with each task's own `stop` and `max_tokens` where the config leaves them open.

    Raises ConfigError for a limit of a task that is not there.
    """
    sampling, known = config.sampling, known_tasks(config.queries.custom_tasks())
    said = sampling.max_tokens if isinstance(sampling.max_tokens, Mapping) else dict.fromkeys(tasks, sampling.max_tokens)
    for task in said:
        get_task(task, known)  # raises where there is none of this name

    def max_tokens(name: str) -> int:
        task = get_task(name, known)
        return said.get(name) or (task.chat_max_tokens if prompt.is_chat else task.max_tokens)

    def stop(name: str) -> tuple[str, ...]:
        # A chat model ends its turn itself; a base model's stop strings would cut a list, a header or a fence.
        own = () if prompt.is_chat else get_task(name, known).stop
        # `is None`: an empty list in the config means no stop strings at all.
        return tuple(own if sampling.stop is None else sampling.stop)

    return SamplingSpec(
        num_samples=sampling.num_samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop={name: stop(name) for name in sorted(tasks)},
        max_tokens={name: max_tokens(name) for name in sorted(tasks)},
        prompt=prompt,
    )


class SamplingJob:
    """One model's part of the job: decide, check, run, count.

    more_tokens: make the rows of `queries` that are there again, with this limit in place of the config's (`extend_truncated.py`).
    """

    def __init__(
        self,
        config: RunConfig,
        store: ArtifactStore,
        key: str,
        queries: LocalRows,
        *,
        force: bool = False,
        retry_errors: bool = False,
        more_tokens: int | None = None,
    ) -> None:
        self.config = config
        self.key = key
        self.model = config.models[key]
        self.queries = queries
        self.samples = store.samples(key)
        recorded = (self.samples.settings() or {}).get("model", {}).get("prompt")
        self.spec = sampling_spec(config, tasks_of(queries), prompt_format(key, self.model, recorded))
        settings = sample_settings(self.model, self.spec)
        if more_tokens is not None:
            # Beside `sampling`, which stays the config's: the rows are still what it asks for, some with more room.
            settings["extended"] = more_tokens
            self.spec = replace(self.spec, max_tokens=dict.fromkeys(self.spec.max_tokens, more_tokens))
        self.map = ActorMap(
            key=key,
            output=self.samples,
            rows=queries,
            columns=INPUT_COLUMNS,
            actor=VllmSampler if isinstance(self.model, VllmModelConfig) else OpenAISampler,
            arguments=self._engine_arguments(),
            pool=self._pool(),
            name=f"the engine of model {key!r}",
            error_rows=error_rows_of(lambda query, error: error_row(query, key, error), SAMPLES),
            retry_errors=retry_errors or more_tokens is not None,
            final=ids_without_error if more_tokens is None else lambda samples: iter(()),
            when_whole=self._finish,
        )
        same = same_samples(key, self.samples.path)
        self.output = Output.plan(
            "sample", self.samples, settings, force=force, resumes=True, costly=True, reusable=same, model=key
        )
        if not self.output.is_wanted and self.map.num_missing():
            # Finished, but of fewer queries than there are, or with errors to make again.
            self.output.action = "resume"
        self._num_to_do = 0
        self._began_s = 0.0

    def check(self) -> None:
        """What can be known to be wrong before an engine starts."""
        check_room(self.key, self.model)
        if isinstance(self.model, VllmModelConfig):
            check_prompt_lengths(self.key, self.model, self.queries, self.spec.prompt)
        else:
            api_key(self.key, self.model)

    def begin(self) -> int:
        """Returns how many queries are done already."""
        # Both read first: `begin` writes over them.
        before = self.samples.manifest()["counts"] if self.samples.state() == "finished" else {}
        tokens_per_s = before.get("tokens_per_s")
        recorded = self.samples.settings() if self.output.action == "resume" else None
        self.output.settings = merged(recorded, self.output.settings)
        self.output.begin()
        num_missing = self._num_to_do = self.map.num_missing()
        words = f"{num_missing:,} of {len(self.queries):,} queries"
        size = size_words(num_missing, self.queries, self.samples, self.spec, tokens_per_s)
        logger.info("sample: %s with %s (%s): %s", words, self.key, _engine_words(self.model), size)
        self._began_s = time.monotonic()
        return len(self.queries) - num_missing

    def _finish(self) -> None:
        """As soon as this model's rows are whole, whatever the other one does: grading need not wait for both."""
        self.output.finish(self.config, self._counts())
        release_placement_groups(self.key)

    def _engine_arguments(self) -> dict[str, Any]:
        if isinstance(self.model, VllmModelConfig):
            # Absolute, as actors have another working directory.
            config: ModelConfig = self.model.model_copy(update={"path": model_path(self.model.path)})
            return {"model": self.key, "config": config, "spec": self.spec}
        # The key from the driver's environment: the nodes' own need not have it.
        return {"model": self.key, "config": self.model, "spec": self.spec, "secret": api_key(self.key, self.model)}

    def _pool(self) -> Pool:
        sampling, replicas = self.config.sampling, self.model.replicas
        return Pool(
            min_size=replicas.min,
            max_size=replicas.max,
            batch_rows=sampling.batch_size,
            batches_in_flight=sampling.num_batches_in_flight,
            max_restarts=sampling.max_restarts,
            options=engine_resources(self.key, self.model),
            need=engine_need(self.key, self.model),
        )

    def _counts(self) -> dict[str, float]:
        num_rows = num_errors = num_tokens = 0
        for batch in self.samples.iter_batches(["num_generated_tokens", "error"]):
            num_rows += batch.num_rows
            num_errors += batch.num_rows - batch["error"].null_count
            # Of no values the sum is null. A server that does not count leaves nulls, which add nothing.
            num_tokens += pc.sum(pc.list_flatten(batch["num_generated_tokens"])).as_py() or 0
        if num_errors:
            logger.warning(
                "sample: %s of %s rows of %s have an error; --retry-errors makes those anew, and no others",
                *(f"{num_errors:,}", f"{num_rows:,}", self.key),
            )
        counts = {
            "num_rows": num_rows,
            "num_rows_made": self._num_to_do,
            "num_errors": num_errors,
            "num_sampled_tokens": num_tokens,
        }
        # The engine's start is part of it, as it is of the next run. For that run's estimate, see `sampling_size.py`.
        rate = rate_of_run(num_tokens, num_rows, self._num_to_do, self.spec.num_samples, time.monotonic() - self._began_s)
        return {**counts, "tokens_per_s": rate}


def _engine_words(model: ModelConfig) -> str:
    if isinstance(model, VllmModelConfig):
        parallel = f", TP {model.tensor_parallel_size}" if model.tensor_parallel_size > 1 else ""
        return f"vLLM on {model.device}{parallel}, {model.replicas.min} to {model.replicas.max} engines"
    return f"{model.base_url}"


STAGE = Stage("sample", run_sampling, reads=("queries",), writes=("samples",), needs_ray=True, retries=True)
