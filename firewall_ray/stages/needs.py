"""What the stages of a run take of the cluster, looked at before the first begins: not after a day of sampling. In the driver."""

from collections.abc import Collection, Sequence

from firewall_ray.cluster.room import Need, Resources, accelerator, actors_need, check_room
from firewall_ray.config.router import RouterConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.room import engine_need
from firewall_ray.stages.sandbox_room import check_sandboxes
from firewall_ray.store.layout import ArtifactStore


def training_need(router: RouterConfig) -> Need:
    """Of all training workers, which begin together."""
    # What `_train` asks for each worker (`resources_per_worker`).
    part: Resources = {"CPU": 1.0, **({"GPU": 1.0} if router.device == "gpu" else {}), **accelerator(router.accelerator_type)}
    fields = ["num_workers", "device", *(["accelerator_type"] if router.accelerator_type else [])]
    return Need("router: training", [part] * router.num_workers, [f"router.{field}" for field in fields])


def check_cluster(config: RunConfig, store: ArtifactStore, *, redo: Collection[str] = (), others: Sequence[str] = ()) -> None:
    """Raises ConfigError for the first of sampling, training and scoring that has something to do and fits on no nodes, were they
    idle; where an autoscaler may bring some, only warns. Raises SandboxUnavailable where grading has to run programs and a node
    refuses to.

    redo: names of stages that are done again although they are finished. others: models to sample beside the pair.
    """
    models = list(dict.fromkeys((config.pair.weak, config.pair.strong, *others)))
    unsampled = [key for key in models if "sample" in redo or store.samples(key).state() != "finished"]
    for key in unsampled:
        check_room(engine_need(key, config.models[key]))
    if unsampled or "grade" in redo or any(store.grades(key).state() != "finished" for key in models):
        check_sandboxes(config)
    # What comes after a stage that has something to do has something to do as well.
    designs = config.router.designs
    untrained = bool(unsampled) or "train_router" in redo or any(store.router(name).state() != "finished" for name in designs)
    if untrained:
        check_room(training_need(config.router))
    if untrained or "score" in redo or any(store.scores(name).state() != "finished" for name in designs):
        check_room(actors_need("scoring", config.scoring))
