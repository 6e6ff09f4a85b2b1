"""A round of relabelling, in order: decisions/ -> drawn -> queries -> samples -> grades -> labels -> folded -> router -> scores ->
comparison. All but the ends are the pipeline's own stages, on a store of the round's.

Runs in the driver. Every stage skips what is finished and goes on where it was killed.
"""

import logging
from collections.abc import Iterator

from pyarrow import fs as pafs

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.config.serve_file import ServeFile
from firewall_ray.errors import ConfigError
from firewall_ray.relabel.comparison import run_comparison
from firewall_ray.relabel.draw import run_draw
from firewall_ray.relabel.fold import run_fold
from firewall_ray.relabel.references import run_references
from firewall_ray.relabel.stores import FoldedStore, RoundStore, router_name
from firewall_ray.schemas import LABEL_DESIGNS
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.sample import run_sampling
from firewall_ray.stages.score import card_of, run_scoring
from firewall_ray.stages.stage import StageResult
from firewall_ray.stages.train_router import run_training
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

logger = logging.getLogger("firewall_ray")


def run_relabel(
    config: RunConfig,
    store: ArtifactStore,
    name: str,
    serve_file: ServeFile,
    *,
    limit: int | None = None,
    references: str | None = None,
    force: bool = False,
) -> Iterator[StageResult]:
    """The round `name` against the router that `serve_file` has in service, stage by stage. limit: queries drawn.

    Raises ConfigError where the round could replace nothing, and what the stages raise.
    """
    in_service = serve_file.router
    design = _design(config, store, in_service)
    new = router_name(design, name)
    if new == in_service:
        raise ConfigError(f"{new}, the router of the round {name}, is in service already. Begin another round: --name.")
    round_store, folded = RoundStore(store.root, name), FoldedStore(store.root, name)
    # With all columns: the draw reads the prompts alone, and folding would miss the others after hours of sampling.
    store.labels().require()

    yield run_draw(config, store, round_store, limit=limit, force=force)
    yield run_references(config, round_store, references=references, force=force)
    for key in dict.fromkeys((config.pair.weak, config.pair.strong)):  # one after the other: GPUs for one are enough
        yield from run_sampling(at_low_priority(config), round_store, models=[key], force=force)
    yield from run_grading(config, round_store, force=force)
    yield run_labeling(config, round_store, force=force)
    # The router is costly and would be refused with other labels. It is the round's own and not in service, so it is made again.
    folding = run_fold(config, store, round_store, force=force)
    yield folding
    labels, training = round_store.folded(), training_config(config, store, in_service, design)
    anew = force or folding["action"] == "run" or is_of_other_labels(round_store.router(design), labels)
    trained = run_training(training, round_store, labels=labels, designs=[design], force=anew)
    # The stage was told of a design and of the round's folder; what people look for is the router's name in the run's routers/.
    yield {**trained, "path": folded.router(new).path, "routers": [new]}
    yield run_scoring(config, folded, designs=[in_service, new], force=force)
    yield run_comparison(config, store, folded, new, serve_file, force=force)


def at_low_priority(config: RunConfig) -> RunConfig:
    """The config with as few engines and requests in flight as `relabel` says, and its n."""
    relabel, models = config.relabel, dict(config.models)
    for key in (config.pair.weak, config.pair.strong):
        model = models[key]
        node_resource = model.node_resource if relabel.node_resource is None else relabel.node_resource
        changes: dict[str, object] = {"replicas": relabel.replicas, "node_resource": node_resource}
        if isinstance(model, OpenAIModelConfig):
            # Never more than the model's own limit, which its owner set for all callers.
            changes["max_concurrency"] = min(model.max_concurrency, relabel.max_concurrency)
        models[key] = model.model_copy(update=changes)
    num_samples = relabel.num_samples or config.sampling.num_samples
    sampling = config.sampling.model_copy(update={"num_samples": num_samples})
    return config.model_copy(update={"models": models, "sampling": sampling})


def training_config(config: RunConfig, store: ArtifactStore, in_service: str, design: str) -> RunConfig:
    """The run's router settings, on the router in service as backbone where `relabel.warm_start` says so."""
    changes: dict[str, object] = {"designs": [design]}
    if config.relabel.warm_start and isinstance(store.filesystem, pafs.LocalFileSystem):
        path = store.router(in_service).path
        # tokenizer None: the router's folder has its own, and one of the config could number tokens otherwise than it learned.
        changes["backbone"] = config.router.backbone.model_copy(update={"path": path, "tokenizer": None})
    elif config.relabel.warm_start:
        logger.info(
            "relabel: %s is no folder that training workers can load from, so training begins at router.backbone", store.root
        )
    return config.model_copy(update={"router": config.router.model_copy(update=changes)})


def is_of_other_labels(router: Dataset, labels: Dataset) -> bool:
    """Whether the round's router was trained before references were added. It is not in service, so it may be trained anew."""
    return router.state() == "finished" and router.manifest()["settings"]["labels"] != labels.identity()


def _design(config: RunConfig, store: ArtifactStore, in_service: str) -> str:
    """The label design of the router in service, which the new one is trained on too. Raises ConfigError, ArtifactMissing."""
    card = card_of(store, in_service)
    pair = (config.pair.weak, config.pair.strong)
    if (card.weak.key, card.strong.key) != pair:
        raise ConfigError(
            f"pair is {' and '.join(pair)}, but the router {in_service} is for {card.weak.key} and {card.strong.key}."
        )
    if card.design not in LABEL_DESIGNS:
        raise ConfigError(
            f"The router {in_service} learnt {card.design!r}, which labels/ does not have; there are {LABEL_DESIGNS}."
        )
    return card.design
