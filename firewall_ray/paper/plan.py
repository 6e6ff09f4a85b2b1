"""The cost plan: queries, generations, tokens, device-hours and money of every stage, before a GPU is used.

The arithmetic, every step of which is in the plan's rows:

* generations = queries x (n + 1): n samples and the greedy answer; queries of Table 2's other models: the test split's;
* generated tokens = generations x mean tokens of a completion;
* prompt tokens = queries x 2 x mean tokens of a prompt: the n samples share one prefill, the greedy request has its own;
* engine seconds = prompt tokens / prefill rate + generated tokens / decoding rate; device-hours = those x GPUs of an engine;
* all other stages: units / rate, see `work.py`; wall hours = those over replicas that are busy to the end.

Counts come from queries/ and rates from what is finished (`measured.py`), else from `paper.plan`. Measured rates include starts.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.paper import ThroughputConfig, WorkloadConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.paper.backbone_size import relative_size
from firewall_ray.paper.durations import busy_s, sampled_tokens_per_s, sampling_s
from firewall_ray.paper.shape import memory, num_parameters, shape_of
from firewall_ray.paper.variants import other_models
from firewall_ray.paper.work import Work, all_work, num_queries, splits_of, workload
from firewall_ray.store.layout import ArtifactStore


@dataclass(frozen=True)
class PlanRow:
    """One stage. device_hours and wall_hours are None where no rate is known; arithmetic says how they come about.

    price: of its GPU-hours. measured_s: what the stage took, where it is finished; ratio: planned wall time over that.
    """

    stage: str
    queries: int
    generations: int | None
    tokens: float | None
    device: str  # gpu or cpu; none where it is bought
    device_hours: float | None
    wall_hours: float | None
    arithmetic: str
    price: float | None = None
    measured_s: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.measured_s is None or self.wall_hours is None else self.wall_hours * 3600 / self.measured_s


@dataclass(frozen=True)
class Plan:
    """rows in the order of the stages; memory: one line a model on GPUs; assumptions: what the numbers rest on."""

    rows: tuple[PlanRow, ...]
    memory: tuple[str, ...]
    assumptions: tuple[str, ...]

    def device_hours(self, device: str) -> float:
        return sum(row.device_hours or 0.0 for row in self.rows if row.device == device)

    def price(self) -> float | None:
        """Of all stages; None without a price an hour."""
        prices = [row.price for row in self.rows if row.price is not None]
        return sum(prices) if prices else None

    def compared(self) -> tuple[float, float] | None:
        """Seconds planned and measured, of all stages that are finished; None where none is."""
        rows = [row for row in self.rows if row.ratio is not None]
        planned, measured = (sum(values) for values in ([r.wall_hours or 0 for r in rows], [r.measured_s or 0 for r in rows]))
        return (planned * 3600, measured) if rows else None

    def summary(self) -> dict[str, Any]:
        """For the job's closing JSON line."""
        compared = self.compared()
        return {
            "stage": "plan",
            "gpu_hours": round(self.device_hours("gpu"), 2),
            "cpu_hours": round(self.device_hours("cpu"), 2),
            "price": self.price(),
            "planned_s": None if compared is None else round(compared[0], 1),
            "measured_s": None if compared is None else round(compared[1], 1),
            "rows": [{**asdict(row), "ratio": row.ratio} for row in self.rows],
        }


def make_plan(config: RunConfig, store: ArtifactStore) -> Plan:
    """The plan of a run. Raises ConfigError naming the field of `paper.plan` that is needed and missing, or the model that
    does not fit onto its GPUs."""
    tasks = workload(config, store)
    measured_in = store if config.paper.plan.rates_from is None else ArtifactStore(config.paper.plan.rates_from)
    models = [config.pair.weak, config.pair.strong, *other_models(config)]
    rows = [_sampling_row(config, store, measured_in, key, tasks) for key in models]
    # By stage, the same work as it is in the run whose rates are taken, which may have other queries.
    there = {work.stage: work for work in all_work(config, measured_in)}
    rows += [_row(config, work, there[work.stage]) for work in all_work(config, store)]
    return Plan(tuple(rows), tuple(memory_lines(config, models, tasks)), _assumptions(config, store))


# Rows ----------------------------------------------------------------------------------------------------------------


def _sampling_row(
    config: RunConfig, store: ArtifactStore, measured_in: ArtifactStore, key: str, tasks: Mapping[str, WorkloadConfig]
) -> PlanRow:
    model, n = config.models[key], config.sampling.num_samples
    of_task = {name: task.num_queries(splits_of(config, key)) for name, task in tasks.items()}
    queries = num_queries(tasks, splits_of(config, key))
    generations = queries * (n + 1)
    prompt = sum(2 * of_task[name] * task.prompt_tokens for name, task in tasks.items())
    generated = sum((n + 1) * of_task[name] * task.completion_tokens for name, task in tasks.items())
    shares = " + ".join(f"{of_task[name]:,} x {task.completion_tokens:g} of {name}" for name, task in tasks.items())
    steps = (
        f"{queries:,} queries x ({n} + 1) = {generations:,} generations; {n + 1} x ({shares}) = {generated:,.0f} tokens; "
        f"{prompt:,.0f} prompt tokens"
    )
    if not isinstance(model, VllmModelConfig):
        # Tokens are what is paid for there; their prices are not in the config.
        return PlanRow(
            f"sample {key}", queries, generations, generated, "none", None, None, f"{steps}; bought from {model.base_url}"
        )
    measured = sampled_tokens_per_s(measured_in, key, model.replicas.max)
    if measured is not None:
        # Without the prompts: their time is in what was measured.
        seconds = generated / measured
        rate = f"{generated:,.0f} / {measured:,.0f} a second, measured here"
    else:
        given = _throughput(config, key)
        seconds = prompt / given.prompt_tokens_per_s + generated / given.generated_tokens_per_s
        seconds += config.paper.plan.start_s * model.replicas.max
        rate = f"{prompt:,.0f} / {given.prompt_tokens_per_s:,.0f} + {generated:,.0f} / {given.generated_tokens_per_s:,.0f}"
        rate += _start_words(config, model.replicas.max)
    # On CPUs an hour is one of an engine, however many cores it has.
    devices = model.tensor_parallel_size * model.pipeline_parallel_size if model.device == "gpu" else 1
    hours = seconds / 3600
    steps += f"; {rate} = {seconds:,.0f} s x {devices} {model.device.upper()} = {hours * devices:,.2f} h"
    return PlanRow(
        f"sample {key}",
        queries,
        generations,
        generated,
        model.device,
        hours * devices,
        # Those of replicas.max engines that are busy to the end.
        hours / model.replicas.max,
        steps,
        _price(config, model.device, hours * devices),
        sampling_s(store, key),
    )


def _row(config: RunConfig, work: Work, there: Work) -> PlanRow:
    """there: the same stage of the run whose rates are taken."""
    measured_s = busy_s(work.outputs)
    if work.device == "none":
        return PlanRow(work.stage, work.queries, None, work.tokens, "none", None, None, f"{work.steps}; bought", None, measured_s)
    rate, words = work.rate, f"paper.plan.{work.field}"
    took_s = busy_s(there.outputs)
    start_s = config.paper.plan.start_s * work.replicas if work.field else 0.0  # grading has no model to load
    if took_s is not None and there.units:
        rate, words, start_s = there.units / took_s / work.replicas, "measured", 0.0
    elif rate is None and (size := relative_size(config, work.stage)) is not None:
        own, factor = size
        rate, words = own / factor, f"the run's own / {factor:.2g} times its parameters"
    if rate is None:
        steps = f"{work.steps}; paper.plan.{work.field} is not given"
        return PlanRow(work.stage, work.queries, None, work.tokens, work.device, None, None, steps, None, measured_s)
    # The rate is one worker's, so these are hours of all workers together.
    hours = (work.units / rate + start_s) / 3600
    start = _start_words(config, work.replicas) if start_s else ""
    steps = f"{work.steps}; / {rate:,.3g} a second and worker ({words}){start} = {hours:,.3f} h"
    wall = hours / work.replicas
    price = _price(config, work.device, hours)
    return PlanRow(work.stage, work.queries, None, work.tokens, work.device, hours, wall, steps, price, measured_s)


def _price(config: RunConfig, device: str, hours: float) -> float | None:
    price = config.paper.plan.price_per_device_hour
    return None if price is None or device != "gpu" else hours * price


def _start_words(config: RunConfig, replicas: int) -> str:
    return f" + {replicas} x {config.paper.plan.start_s:g} s of starting" if config.paper.plan.start_s else ""


def _throughput(config: RunConfig, key: str) -> ThroughputConfig:
    given = config.paper.plan.throughput.get(key)
    if given is None:
        raise ConfigError(
            f"paper.plan.throughput.{key}: missing. Give prompt_tokens_per_s and generated_tokens_per_s of one engine, or measure "
            f"them: python jobs/sample.py --config FILE --model {key} --limit 200, then plan again with the same --root."
        )
    return given


# Memory and words ----------------------------------------------------------------------------------------------------


def memory_lines(config: RunConfig, models: list[str], tasks: Mapping[str, WorkloadConfig]) -> list[str]:
    """What a model takes of its GPUs. Raises ConfigError where its weights leave no room for a KV cache."""
    lines = []
    # Of the task with the longest sequences: the cache must hold these too.
    length = max(task.prompt_tokens + task.completion_tokens for task in tasks.values())
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
    where = config.paper.plan.rates_from or "this root"
    prices = (
        ()
        if config.paper.plan.price_per_device_hour is None
        else ("Money is that of busy GPU-hours. A node that is rented whole costs its wall hours times all its GPUs.",)
    )
    return (
        f"Numbers of queries are those of {counts}; tokens of a prompt and of a completion those of paper.plan.workload.",
        f"The {config.sampling.num_samples} samples of a query share one prefill; the greedy answer is a request of its own.",
        "Table 2's other models sample the test split alone; thresholds of the run's routers come from its own validation split.",
        f"Rates are those of what is finished in {where}, starts included; else paper.plan's, of workers that are kept full.",
        "Labels, tables, Margin Sampling and kNN take seconds and are left out.",
        *prices,
    )
