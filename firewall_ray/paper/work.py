"""What there is to do in each stage that is counted in units: passes, scores, pairs, battles; and the rate that the config gives.

The counts are those of queries/ where it is there, else of `paper.plan.workload`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from firewall_ray.baselines.embeddings import embedding_name
from firewall_ray.baselines.run import ON_EMBEDDINGS
from firewall_ray.config.paper import WorkloadConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.paper.variants import OTHER_SPLITS, BackboneStore, backbone_config, other_models
from firewall_ray.schemas import HYBRID_DESIGNS, QUALITIES, SPLITS
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import get_task, known_tasks

QUALITY_SPLITS = ("train", "validation")  # whose responses get a BARTScore, see `baselines/hybrid_llm_stages.py`


@dataclass(frozen=True)
class Work:
    """One stage. units: of them `rate` is a number a second of one of `replicas`. field: of paper.plan, where the rate stands.

    outputs: what the stage makes; its manifests say how long that took. steps: how the units come about.
    """

    stage: str
    queries: int
    units: float
    field: str
    rate: float | None
    device: str
    replicas: int
    outputs: tuple[Dataset, ...]
    steps: str
    tokens: float | None = None


def workload(config: RunConfig, store: ArtifactStore) -> dict[str, WorkloadConfig]:
    """By task; counts from queries/ when it is finished. Raises ConfigError naming what `paper.plan.workload` lacks."""
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
            update={
                "num_train": counts[name, "train"],
                "num_other": counts[name, "validation"] + counts[name, "test"],
                "num_test": counts[name, "test"],
            }
        )
        for name in names
    }


def num_queries(tasks: Mapping[str, WorkloadConfig], splits: tuple[str, ...] = SPLITS) -> int:
    return sum(task.num_queries(splits) for task in tasks.values())


def splits_of(config: RunConfig, key: str) -> tuple[str, ...]:
    """Which queries a model samples: all for the pair, the test split for Table 2's others."""
    return OTHER_SPLITS if key in other_models(config) else SPLITS


def all_work(config: RunConfig, store: ArtifactStore) -> list[Work]:
    """Everything after sampling, in the order of the stages. labels and tables take seconds and are left out."""
    tasks = workload(config, store)
    plan, designs = config.paper.plan, list(config.router.designs)
    found = [_grading(config, store, key, tasks) for key in (config.pair.weak, config.pair.strong, *other_models(config))]
    found += _routers(config, store, "routers", designs, tasks, plan.training_queries_per_s, plan.scoring_queries_per_s, "")
    for name in config.paper.backbones:
        variant, place = backbone_config(config, name), BackboneStore(store.root, name)
        rates = plan.backbones.get(name)
        given = (rates.training_queries_per_s, rates.scoring_queries_per_s) if rates else (None, None)
        found += _routers(variant, place, name, list(variant.router.designs), tasks, *given, f"backbones.{name}.")
    return found + _baselines(config, store, tasks)


def _grading(config: RunConfig, store: ArtifactStore, key: str, tasks: Mapping[str, WorkloadConfig]) -> Work:
    known, n = known_tasks(config.queries.custom_tasks()), config.sampling.num_samples
    queries = num_queries(tasks, splits_of(config, key))
    # At most: equal completions of a query are graded once.
    seconds = {
        name: task.num_queries(splits_of(config, key)) * (n + 1) * get_task(name, known).verdict_s for name, task in tasks.items()
    }
    steps = " + ".join(f"{amount:,.0f} s of {name}" for name, amount in seconds.items())
    steps = f"{queries:,} queries x ({n} + 1) verdicts, at most {steps} on one CPU"
    # The rate is one second of a verdict a second: a task's `verdict_s` says how long one takes.
    return Work(f"grade {key}", queries, sum(seconds.values()), "", 1.0, "cpu", 1, (store.grades(key),), steps)


def _routers(
    config: RunConfig,
    store: ArtifactStore,
    name: str,
    designs: Sequence[str],
    tasks: Mapping[str, WorkloadConfig],
    training: float | None,
    scoring: float | None,
    section: str,
) -> list[Work]:
    """Training and scoring of the routers of these designs."""
    router, train, every = config.router, num_queries(tasks, ("train",)), num_queries(tasks)
    passes = train * router.epochs * len(designs)
    steps = f"{train:,} queries x {router.epochs} epochs x {len(designs)} label designs = {passes:,} passes"
    tokens = sum(task.num_train * task.prompt_tokens for task in tasks.values()) * router.epochs * len(designs)
    scored = sum(task.num_queries() * task.prompt_tokens for task in tasks.values()) * len(designs)
    outputs = tuple(store.router(design) for design in designs), tuple(store.scores(design) for design in designs)
    scores = f"{every:,} queries x {len(designs)} routers = {every * len(designs):,} scores"
    replicas = config.scoring.replicas.max
    return [
        Work(
            *(f"train {name}", train, passes, f"{section}training_queries_per_s", training, router.device, router.num_workers),
            *(outputs[0], steps, tokens),
        ),
        Work(
            *(f"score {name}", every, every * len(designs), f"{section}scoring_queries_per_s", scoring, config.scoring.device),
            *(replicas, outputs[1], scores, scored),
        ),
    ]


def _baselines(config: RunConfig, store: ArtifactStore, tasks: Mapping[str, WorkloadConfig]) -> list[Work]:
    """Margin Sampling and kNN take a moment and are left out."""
    names, rates, section = config.baselines.names, config.paper.plan.baselines, config.baselines
    every, train = num_queries(tasks), num_queries(tasks, ("train",))
    found = []
    if set(ON_EMBEDDINGS) & set(names):
        embedding = section.embedding
        # Of an API nothing runs here: its row says how much there is to embed.
        device = "none" if embedding.openai else embedding.device
        tokens = sum(task.num_queries() * task.prompt_tokens for task in tasks.values())
        outputs = (store.embeddings(embedding_name(config)),)
        found.append(
            Work(
                *("embed", every, every, "baselines.embedding_queries_per_s", rates.embedding_queries_per_s, device),
                *(embedding.replicas.max, outputs, f"{every:,} queries", tokens),
            )
        )
    if "routellm_mf" in names:
        epochs = section.routellm_mf.epochs
        battles = 2 * train * epochs  # each model's wins on a query are one, weighted
        steps = f"{train:,} queries x 2 winners x {epochs} epochs = {battles:,} battles"
        rate, made = rates.mf_battles_per_s, (store.scores("routellm_mf"),)
        found.append(Work("train routellm_mf", train, battles, "baselines.mf_battles_per_s", rate, "cpu", 1, made, steps))
    if hybrid := [name for name in HYBRID_DESIGNS if name in names]:
        found += _bart(config, store, tasks)
        plan, its_own = config.paper.plan, config.router.model_copy(update={"epochs": section.hybrid_llm.epochs})
        trained = config.model_copy(update={"router": its_own})
        found += _routers(trained, store, "hybrid_llm", hybrid, tasks, plan.training_queries_per_s, plan.scoring_queries_per_s, "")
    return found


def _bart(config: RunConfig, store: ArtifactStore, tasks: Mapping[str, WorkloadConfig]) -> list[Work]:
    """The qualities of Hybrid LLM: every response of both models against every reference; and the BART where it is a small one."""
    bart, rates = config.baselines.bart_score, config.paper.plan.baselines
    n = min(config.sampling.num_samples, config.baselines.hybrid_llm.num_responses)
    found = []
    if bart.path is None:
        train = num_queries(tasks, ("train",))
        # At most: equal responses to a query are one.
        pairs = float(train * 2 * n * bart.epochs)
        steps = f"at most {train:,} queries x 2 models x {n} responses x {bart.epochs} epochs = {pairs:,.0f} pairs"
        rate, made = rates.bart_training_pairs_per_s, (store.baseline("bart", pa.schema([])),)
        found.append(Work("train bart", train, pairs, "baselines.bart_training_pairs_per_s", rate, bart.device, 1, made, steps))
    keys = (config.pair.weak, config.pair.strong)
    # Of the test split a part is scored, for figure 3 alone: see `bart_qualities.py`.
    drawn = {name: min(task.num_queries(("test",)), config.paper.bart_score_queries) for name, task in tasks.items()}
    learnt = {name: task.num_queries(QUALITY_SPLITS) for name, task in tasks.items()}
    for stage, folder, counts in (("bart_score", "qualities", learnt), ("bart_score of test", "qualities_test", drawn)):
        queries = sum(counts.values())
        references = sum(counts[name] * min(task.references, bart.max_references) for name, task in tasks.items())
        pairs = 2 * n * references
        steps = f"{queries:,} queries with {references:,.0f} references x 2 models x {n} responses = at most {pairs:,.0f} pairs"
        outputs = tuple(store.baseline(f"{folder}/{key}", QUALITIES) for key in keys)
        rate, field = rates.bart_score_pairs_per_s, "baselines.bart_score_pairs_per_s"
        found.append(Work(stage, queries, pairs, field, rate, bart.device, bart.replicas.max, outputs, steps))
    return found
