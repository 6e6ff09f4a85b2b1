"""The cost plan: queries, generations, tokens and device-hours of every stage, before a GPU is used.

The arithmetic, every step of which is in the plan's rows:

* generations = queries x (n + 1): n samples and the greedy answer;
* generated tokens = generations x mean tokens of a completion;
* prompt tokens = queries x 2 x mean tokens of a prompt: the n samples share one prefill, the greedy request has its own;
* engine seconds = prompt tokens / prefill rate + generated tokens / decoding rate; device-hours = those x GPUs of an engine;
* training passes = training queries x epochs x label designs; scorings = queries x routers.

Counts come from queries/ and rates from finished samples and routers where they are there, else from `paper.plan`. What was
measured includes engine start and prefill.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.paper import ThroughputConfig, WorkloadConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.paper.shape import memory, num_parameters, shape_of
from firewall_ray.paper.variants import backbone_config, other_models
from firewall_ray.router.card import load_card
from firewall_ray.store.layout import ArtifactStore

MEASURED_ROWS = 100  # with fewer in one job the start of its engines is all that was measured


@dataclass(frozen=True)
class PlanRow:
    """One stage. device_hours and wall_hours are None where no rate is known; arithmetic says how they come about."""

    stage: str
    queries: int
    generations: int | None
    tokens: float | None
    device: str  # gpu or cpu
    device_hours: float | None
    wall_hours: float | None
    arithmetic: str


@dataclass(frozen=True)
class Plan:
    """rows in the order of the stages; memory: one line a model on GPUs; assumptions: what the numbers rest on."""

    rows: tuple[PlanRow, ...]
    memory: tuple[str, ...]
    assumptions: tuple[str, ...]

    def device_hours(self, device: str) -> float:
        return sum(row.device_hours or 0.0 for row in self.rows if row.device == device)

    def summary(self) -> dict[str, Any]:
        """For the job's closing JSON line."""
        return {
            "stage": "plan",
            "gpu_hours": round(self.device_hours("gpu"), 2),
            "cpu_hours": round(self.device_hours("cpu"), 2),
            "rows": [asdict(row) for row in self.rows],
        }


def make_plan(config: RunConfig, store: ArtifactStore) -> Plan:
    """The plan of a run. Raises ConfigError naming the field of `paper.plan` that is needed and missing, or the model that
    does not fit onto its GPUs."""
    workload = _workload(config, store)
    models = [config.pair.weak, config.pair.strong, *other_models(config)]
    rows = [_sampling_row(config, store, key, workload) for key in models]
    # None: the run's own backbone, which alone may have been measured here.
    variants = {None: config} | {name: backbone_config(config, name) for name in config.paper.backbones}
    for backbone, variant in variants.items():
        rows += [_training_row(variant, store, backbone, workload), _scoring_row(variant, backbone, workload)]
    return Plan(tuple(rows), tuple(_memory_lines(config, models, workload)), _assumptions(config, store))


# What there is to do -------------------------------------------------------------------------------------------------


def _workload(config: RunConfig, store: ArtifactStore) -> dict[str, WorkloadConfig]:
    """By task; counts from queries/ when it is finished."""
    if config.queries.tasks is None:
        raise ConfigError(
            "--plan plans sampling, but queries.outcomes brings outcomes that exist already: there is nothing to plan."
        )
    names = list(config.queries.tasks.options())
    given = config.paper.plan.workload
    missing = [name for name in names if name not in given]
    if missing:
        raise ConfigError(
            f"paper.plan.workload.{missing[0]}: missing; --plan needs num_train, num_other, prompt_tokens and completion_tokens of "
            f"every task ({', '.join(names)})."
        )
    if store.queries().state() != "finished":
        return {name: given[name] for name in names}
    table = store.queries().read(["task", "split"])
    counts = Counter(zip(table["task"].to_pylist(), table["split"].to_pylist(), strict=True))
    return {
        name: given[name].model_copy(
            # Tokens stay the config's: queries/ holds texts, and counting them would take each model's tokenizer.
            update={"num_train": counts[name, "train"], "num_other": counts[name, "validation"] + counts[name, "test"]}
        )
        for name in names
    }


def _num_queries(workload: Mapping[str, WorkloadConfig]) -> int:
    return sum(task.num_train + task.num_other for task in workload.values())


# Rows ----------------------------------------------------------------------------------------------------------------


def _sampling_row(config: RunConfig, store: ArtifactStore, key: str, workload: Mapping[str, WorkloadConfig]) -> PlanRow:
    model, n = config.models[key], config.sampling.num_samples
    queries = _num_queries(workload)
    # Every split is sampled, train, validation and test: labels are made of all of them, and the report reads the last.
    generations = queries * (n + 1)
    prompt = sum(2 * (task.num_train + task.num_other) * task.prompt_tokens for task in workload.values())
    generated = sum((n + 1) * (task.num_train + task.num_other) * task.completion_tokens for task in workload.values())
    shares = " + ".join(
        f"{task.num_train + task.num_other:,} x {task.completion_tokens:g} of {name}" for name, task in workload.items()
    )
    steps = (
        f"{queries:,} queries x ({n} + 1) = {generations:,} generations; {n + 1} x ({shares}) = {generated:,.0f} tokens; "
        f"{prompt:,.0f} prompt tokens"
    )
    if not isinstance(model, VllmModelConfig):
        # Tokens are what is paid for there; prices are not in the config.
        steps += f"; bought from {model.base_url}"
        return PlanRow(f"sample {key}", queries, generations, generated, "none", None, None, steps)
    measured = _measured_tokens_per_s(store, key, model.replicas.max)
    if measured is not None:
        # Without the prompts: their time is in what was measured.
        seconds = generated / measured
        rate = f"{generated:,.0f} / {measured:,.0f} a second, measured here"
    else:
        given = _throughput(config, key)
        seconds = prompt / given.prompt_tokens_per_s + generated / given.generated_tokens_per_s
        rate = f"{prompt:,.0f} / {given.prompt_tokens_per_s:,.0f} + {generated:,.0f} / {given.generated_tokens_per_s:,.0f}"
    # On CPUs an hour is one of an engine, however many cores it has.
    devices = model.tensor_parallel_size * model.pipeline_parallel_size if model.device == "gpu" else 1
    hours = seconds / 3600
    steps += f"; {rate} = {seconds:,.0f} s x {devices} {model.device.upper()} = {hours * devices:,.2f} h"
    # The wall's hours are those of replicas.max engines that are busy to the end.
    return PlanRow(
        f"sample {key}", queries, generations, generated, model.device, hours * devices, hours / model.replicas.max, steps
    )


def _training_row(config: RunConfig, store: ArtifactStore, backbone: str | None, workload: Mapping[str, WorkloadConfig]) -> PlanRow:
    """backbone: one of Table 4's others, or None for the run's own."""
    router, stage = config.router, f"train {backbone or 'routers'}"
    queries = sum(task.num_train for task in workload.values())
    passes = queries * router.epochs * len(router.designs)
    tokens = sum(task.num_train * task.prompt_tokens for task in workload.values()) * router.epochs * len(router.designs)
    steps = f"{queries:,} queries x {router.epochs} epochs x {len(router.designs)} label designs = {passes:,} passes"
    rate = (_measured_training(config, store) if backbone is None else None) or config.paper.plan.training_queries_per_s
    if rate is None:
        steps += "; paper.plan.training_queries_per_s is not given"
        return PlanRow(stage, queries, None, tokens, router.device, None, None, steps)
    # The rate is one worker's, so these are hours of all workers together.
    hours = passes / rate / 3600
    steps += f"; / {rate:,.0f} a second and worker = {hours:,.2f} h"
    return PlanRow(stage, queries, None, tokens, router.device, hours, hours / router.num_workers, steps)


def _scoring_row(config: RunConfig, backbone: str | None, workload: Mapping[str, WorkloadConfig]) -> PlanRow:
    queries, routers, scoring = _num_queries(workload), len(config.router.designs), config.scoring
    stage = f"score {backbone or 'routers'}"
    tokens = sum((task.num_train + task.num_other) * task.prompt_tokens for task in workload.values()) * routers
    steps = f"{queries:,} queries x {routers} routers = {queries * routers:,} scores"
    rate = config.paper.plan.scoring_queries_per_s
    if rate is None:
        steps += "; paper.plan.scoring_queries_per_s is not given"
        return PlanRow(stage, queries, None, tokens, scoring.device, None, None, steps)
    hours = queries * routers / rate / 3600
    steps += f"; / {rate:,.0f} a second = {hours:,.3f} h"
    return PlanRow(stage, queries, None, tokens, scoring.device, hours, hours / scoring.replicas.max, steps)


# Rates ---------------------------------------------------------------------------------------------------------------


def _throughput(config: RunConfig, key: str) -> ThroughputConfig:
    given = config.paper.plan.throughput.get(key)
    if given is None:
        raise ConfigError(
            f"paper.plan.throughput.{key}: missing. Give prompt_tokens_per_s and generated_tokens_per_s of one engine, or measure "
            f"them: python jobs/sample.py --config FILE --model {key} --limit 200, then plan again with the same --root."
        )
    return given


def _measured_tokens_per_s(store: ArtifactStore, key: str, replicas: int) -> float | None:
    """Sampled tokens a second of one engine, over the whole of the job that finished the samples; None where that says nothing.

    A job that went on where another was killed, or that added queries, made a part of the rows in all of its time.
    """
    samples = store.samples(key)
    if samples.state() != "finished":
        return None
    manifest = samples.manifest()
    elapsed_s = (datetime.fromisoformat(manifest["finished_at"]) - datetime.fromisoformat(manifest["started_at"])).total_seconds()
    counts = manifest["counts"]
    num_rows = counts["num_rows"]
    num_rows_made = counts.get("num_rows_made", num_rows)  # older manifests do not say
    if num_rows_made < min(num_rows, MEASURED_ROWS) or elapsed_s <= 0:
        return None
    # Sampled tokens are counted over all rows, whichever job made them.
    tokens = counts["num_sampled_tokens"] * num_rows_made / num_rows if num_rows else 0
    return tokens / elapsed_s / replicas if tokens else None


def _measured_training(config: RunConfig, store: ArtifactStore) -> float | None:
    """Rows a second of one worker, the median of a finished router's epochs; None where there is none."""
    for design in config.router.designs:
        router = store.router(design)
        if router.state() == "finished":
            card = load_card(router)
            # The median: an epoch that another job slowed down says little of the others.
            return float(np.median([epoch.num_samples_per_s for epoch in card.history])) / card.training.num_workers
    return None


# Memory and words ----------------------------------------------------------------------------------------------------


def _memory_lines(config: RunConfig, models: list[str], workload: Mapping[str, WorkloadConfig]) -> list[str]:
    """What a model takes of its GPUs. Raises ConfigError where its weights leave no room for a KV cache."""
    lines = []
    # Of the task with the longest sequences: the cache must hold these too.
    length = max(task.prompt_tokens + task.completion_tokens for task in workload.values())
    for key in models:
        model = config.models[key]
        if not isinstance(model, VllmModelConfig) or model.device != "gpu":
            continue
        shape = shape_of(key, model, config.paper.plan.shapes.get(key))
        found = memory(shape, model, config.paper.plan.gpu_memory_gb)
        if found["kv_gb"] <= 0:
            raise ConfigError(
                f"models.{key}: {found['weights_gb']:.1f} GB of weights a GPU do not fit into {model.gpu_memory_utilization:g} x "
                f"{config.paper.plan.gpu_memory_gb:g} GB (paper.plan.gpu_memory_gb). Raise models.{key}.tensor_parallel_size."
            )
        at_once = int(found["kv_tokens"] / length)
        lines.append(
            f"{key}: {num_parameters(shape):,} parameters, {found['weights_gb']:.1f} GB of weights on each of "
            f"{found['num_gpus']:.0f} GPU; {found['kv_gb']:.1f} GB each for KV cache = {found['kv_tokens']:,.0f} tokens, about "
            f"{at_once:,} sequences of {length:,.0f} tokens at once (max_num_seqs {model.max_num_seqs})"
        )
    return lines


def _assumptions(config: RunConfig, store: ArtifactStore) -> tuple[str, ...]:
    counts = "queries/" if store.queries().state() == "finished" else "paper.plan.workload"
    return (
        f"Numbers of queries are those of {counts}; tokens of a prompt and of a completion those of paper.plan.workload.",
        f"The {config.sampling.num_samples} samples of a query share one prefill; the greedy answer is a request of its own.",
        "Rates are those of a finished samples/<model> or router where there is one, else paper.plan's: an engine kept full.",
        "Grading, labels, tables and baselines need CPUs, minutes of them, and are left out; so is starting engines.",
    )
