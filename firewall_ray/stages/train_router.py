"""Labels to routers: Ray Train + DeepSpeed, one Hugging Face folder with a card for each label design.

Runs in the driver; `loop.py` runs on the workers. All designs are trained by one Ray Train run. A worker's death costs at
most one epoch; when the driver dies, the same command goes on from the last checkpoint, on whatever workers there are then.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.train
from pyarrow import fs as pafs
from ray.train.torch import TorchTrainer

from firewall_ray.cluster.progress import watch
from firewall_ray.cluster.room import check_room
from firewall_ray.config.models import model_path
from firewall_ray.config.router import RouterConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError, FirewallRayError, SystemFailure
from firewall_ray.router.card import TRAINED_FILE, write_card
from firewall_ray.router.data import VALIDATION_COLUMNS, FixedShards, check_labels, read_split
from firewall_ray.router.loop import TrainSpec, train_loop
from firewall_ray.router.model import load_tokenizer, network_config
from firewall_ray.router.waits import waits_said
from firewall_ray.stages.needs import training_need
from firewall_ray.stages.stage import Output, Stage, StageResult, action_of
from firewall_ray.store.dataset import Dataset, fingerprint
from firewall_ray.store.layout import ArtifactStore

CHECKPOINTS_FOLDER = "_router_training"  # under ROOT; a run's folder is deleted once its routers are finished
HEALTH_CHECK_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"  # Ray's
REPORTS_EVERY_S = 0.2
# Where it runs, how it is spread there and which routers there are: nothing of what a router learns. Other rows for each worker
# and other rounding are what another seed would bring as well. `precision` is not among them: bf16 trains other weights.
NOT_THE_RESULT = {"designs", "max_failures", "num_workers", "zero_stage", "device", "accelerator_type"}

logger = logging.getLogger("firewall_ray")


def run_training(
    config: RunConfig,
    store: ArtifactStore,
    *,
    limit: int | None = None,
    force: bool = False,
    labels: Dataset | None = None,
    designs: Sequence[str] | None = None,
) -> StageResult:
    """Train the router of every design in `designs` (`config.router.designs`, when None) that is not finished yet.

    limit: at most so many rows of the train split, and of the validation split. labels: where the designs are columns, labels/
    when None; a baseline has its own. Raises LabelError where the labels cannot teach a design, ModelError or ConfigError where
    the backbone cannot be used, ConfigError where no nodes could ever hold the workers, SystemFailure where workers died more
    often than `router.max_failures`.
    """
    router = for_workers(config.router)
    designs = router.designs if designs is None else designs
    labels = (labels or store.labels()).require(["query_id", "split", "prompt", *VALIDATION_COLUMNS, *designs])
    shared = {
        "router": config.router.model_dump(mode="json", exclude=NOT_THE_RESULT),
        "pair": config.pair.model_dump(),
        "labels": labels.identity(),
        "limit": limit,
    }
    how: dict[str, Any] = {"force": force, "resumes": True, "costly": True, "reusable": same_result}
    outputs = {design: Output.plan("train_router", store.router(design), {"design": design, **shared}, **how) for design in designs}
    wanted = [design for design, output in outputs.items() if output.is_wanted]
    result = {"stage": "train_router", "path": f"{store.base}/routers", "routers": list(designs)}
    if not wanted:
        return {**result, "action": "skip", "num_trained": 0}

    counts = check_labels(labels, wanted, router.num_workers, limit)
    network_config(router, load_tokenizer(router.backbone))  # refuses a wrong backbone before anything is begun
    check_room(training_need(router))
    checkpoints = f"{store.base}/{CHECKPOINTS_FOLDER}/{fingerprint(shared)}"
    if force:
        _delete_folder(store.filesystem, checkpoints)
    for design in wanted:
        outputs[design].begin()
    untrained = [design for design in wanted if not _is_trained(store.router(design))]
    if untrained:
        # Rows of an epoch: those trained on, and those validated on at its end.
        rows = counts["train"] - counts["train"] % router.num_workers + counts["validation"]
        last = _last_progress(store.filesystem, checkpoints)
        done = {last["design"]: rows * len(last["history"])} if last and last["design"] in untrained else {}
        with watch("train_router", totals=dict.fromkeys(untrained, rows * router.epochs), done=done) as progress:
            _train(TrainSpec(store, router, tuple(untrained), counts["train"], progress), labels, checkpoints, limit)
    for design in wanted:
        write_card(config, store, design, counts)
        outputs[design].finish(config, counts)
    _delete_folder(store.filesystem, checkpoints)
    return {
        **result,
        "action": action_of(outputs.values()),
        "num_trained": len(wanted),
        **{f"num_{split}": n for split, n in counts.items()},
    }


def same_result(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two routers' settings differ at most in where they are trained. Older records have that among the settings."""
    router = {name: value for name, value in recorded.get("router", {}).items() if name not in NOT_THE_RESULT}
    return {**recorded, "router": router} == wanted


def for_workers(router: RouterConfig) -> RouterConfig:
    """The router's config with absolute paths: workers run in another folder. Raises ConfigError where it cannot be split."""
    if router.batch_size % router.num_workers:
        raise ConfigError(
            f"router.batch_size is {router.batch_size} over all workers, which {router.num_workers} workers cannot share "
            f"equally. Set it to a multiple of router.num_workers, such as "
            f"{-(-router.batch_size // router.num_workers) * router.num_workers}."
        )
    paths = {name: model_path(path) for name in ("path", "tokenizer") if (path := getattr(router.backbone, name)) is not None}
    return router.model_copy(update={"backbone": router.backbone.model_copy(update=paths)})


def _train(spec: TrainSpec, labels: Dataset, checkpoints: str, limit: int | None) -> None:
    """One Ray Train run over all of the spec's designs. Blocks until it is done."""
    router = spec.router
    folder, name = checkpoints.rsplit("/", 1)
    logger.info("training %s on %d rows with %d workers", ", ".join(spec.designs), spec.num_train, router.num_workers)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"spec": spec},
        datasets=datasets(router, labels, spec.designs, limit),
        dataset_config=FixedShards(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=router.num_workers,
            use_gpu=router.device == "gpu",
            resources_per_worker={"CPU": 1, "GPU": 1} if router.device == "gpu" else {"CPU": 1},
            accelerator_type=router.accelerator_type,
        ),
        # The same name and storage_path as a run that was cut off: Ray Train goes on from its last checkpoint.
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=spec.store.filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # the loop logs one line an epoch itself
            failure_config=ray.train.FailureConfig(max_failures=router.max_failures),
        ),
    )
    # Ray Train fetches a worker's report when it asks how the worker is, every two seconds unless told otherwise, and the next
    # epoch's report waits until then. Epochs of a small router are shorter.
    os.environ.setdefault(HEALTH_CHECK_INTERVAL, str(REPORTS_EVERY_S))
    try:
        with waits_said(training_need(router)):
            trainer.fit()
    except ray.train.TrainingFailedError as e:
        failures = getattr(e, "worker_failures", {})
        for failure in failures.values():
            cause = getattr(failure, "_base_exc", failure)
            if isinstance(cause, FirewallRayError):
                raise cause from e
        raise SystemFailure(
            f"Training failed for good after router.max_failures = {router.max_failures} restarts: "
            f"{str(e).strip().splitlines()[-1]} Run the same command again to go on from the last checkpoint."
        ) from e


def datasets(router: RouterConfig, labels: Dataset, designs: Sequence[str], limit: int | None) -> dict[str, ray.data.Dataset]:
    """Tokenised once, kept in the object store (4 bytes a token), and read from there in every epoch of every design."""
    train = read_split(labels, "train", designs, router.backbone, router.max_length, limit)
    columns = [*VALIDATION_COLUMNS, *designs]
    validation = read_split(labels, "validation", columns, router.backbone, router.max_length, limit)
    logger.info("tokenising the prompts")  # takes CPUs, and so may wait for other jobs' as well
    # Files lie task by task; parts of them must not.
    return {"train": train.random_shuffle(seed=router.seed).materialize(), "validation": validation.materialize()}


def _is_trained(dataset: Dataset) -> bool:
    return dataset.filesystem.get_file_info(f"{dataset.path}/{TRAINED_FILE}").type == pafs.FileType.File


def _delete_folder(filesystem: pafs.FileSystem, path: str) -> None:
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)


def _last_progress(filesystem: pafs.FileSystem, checkpoints: str) -> dict[str, Any] | None:
    """What the newest checkpoint's `progress.json` says. Only for the display: which checkpoint counts, Ray Train decides."""
    found = filesystem.get_file_info(pafs.FileSelector(checkpoints, allow_not_found=True))
    folders = (info.path for info in found if info.type == pafs.FileType.Directory and info.base_name.startswith("checkpoint_"))
    for path in sorted(folders, reverse=True):  # their names are times
        try:
            with filesystem.open_input_stream(f"{path}/progress.json") as stream:
                return dict(json.loads(stream.read()))
        except (OSError, ValueError):  # cut off while it was written
            continue
    return None


STAGE = Stage("train_router", run_training, reads=("labels",), writes=("routers", CHECKPOINTS_FOLDER), needs_ray=True)
