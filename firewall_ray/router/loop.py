"""What each training worker does: the designs one after another, each for all epochs, with a checkpoint an epoch.

One worker group trains every design, because starting one (processes, imports, process group) takes longer than training
a small router. A checkpoint says which design and epoch it is from; a restarted worker group goes on from there.

In a checkpoint: `state-*.safetensors` (weights and optimizer, each worker its part, which any number of workers can load: see
state.py), `best/` (the Hugging Face folder of the best epoch so far) and `progress.json`. A design that is done leaves `best/`,
its history and its validation scores in `routers/<design>/`; the driver adds the card and the manifest.
"""

import json
import logging
import math
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import torch
import torch.distributed as dist
from pyarrow import fs as pafs
from ray.data import DataContext
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedTokenizerBase

from firewall_ray.cluster.progress import DriverHandler
from firewall_ray.config.router import RouterConfig
from firewall_ray.router.card import TRAINED_FILE, VALIDATION_FILE
from firewall_ray.router.data import Collate, columns_of
from firewall_ray.router.engine import make_engine, save_weights
from firewall_ray.router.model import build_model, load_tokenizer
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.router.state import SavedState, save_state
from firewall_ray.router.telemetry import TrainingMonitor
from firewall_ray.router.validation import validation_logits, validation_metrics
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

logger = logging.getLogger("firewall_ray")


@dataclass(frozen=True)
class TrainSpec:
    """What the driver hands to every worker. num_train: rows over all workers; progress: the driver's `ProgressCounter`."""

    store: ArtifactStore
    router: RouterConfig
    designs: tuple[str, ...]
    num_train: int
    progress: Any


@dataclass
class Progress:
    """Where training stands after an epoch. history: one dict an epoch, the fields of `card.EpochMetrics`."""

    design: str
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """From 1; 0 before the first epoch. A NaN loss, a diverged epoch, is never the best while another is there."""
        losses = [math.inf if math.isnan(epoch["validation_bce"]) else epoch["validation_bce"] for epoch in self.history]
        return 1 + losses.index(min(losses)) if losses else 0


@dataclass(frozen=True)
class Worker:
    """What one worker keeps over all designs. validation: the split's columns (`data.columns_of`); all but rank 0 the ids alone."""

    spec: TrainSpec
    tokenizer: PreTrainedTokenizerBase
    validation: dict[str, Any]
    best: Path  # rank 0's: the Hugging Face folder of the current design's best epoch
    device: torch.device

    @property
    def is_first(self) -> bool:
        return dist.get_rank() == 0

    def epochs_left(self, progress: Progress) -> int:
        designs, epochs = self.spec.designs, self.spec.router.epochs
        return (len(designs) - designs.index(progress.design)) * epochs - len(progress.history)


def train_loop(config: dict[str, TrainSpec]) -> None:
    """The worker's entry point, in the form that Ray Train calls."""
    spec = config["spec"]
    _log_to_driver(spec.progress)
    with tempfile.TemporaryDirectory() as scratch:
        worker = start_worker(spec, Path(scratch))
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            _train_designs(worker, Progress(spec.designs[0]), None)
            return
        with checkpoint.as_directory() as folder:
            progress = Progress(**json.loads((Path(folder) / "progress.json").read_text()))
            if progress.design not in spec.designs:  # it was done, and the driver died before the next one began
                _train_designs(worker, Progress(spec.designs[0]), None)
                return
            logger.info("resuming %s after epoch %d", progress.design, len(progress.history))
            if worker.is_first:
                shutil.copytree(Path(folder) / "best", worker.best)
            _train_designs(worker, progress, Path(folder))


def start_worker(spec: TrainSpec, scratch: Path) -> Worker:
    """Tokenizer, device and the whole validation split, whose token ids stay where Ray has them."""
    # Whole blocks: a batch of another size would be a copy of them on this worker's heap.
    batches = ray.train.get_dataset_shard("validation").iter_batches(batch_format="pyarrow", batch_size=None)
    validation = columns_of(batches)
    if ray.train.get_context().get_world_rank() > 0:
        validation = {"input_ids": validation["input_ids"]}
    return Worker(spec, load_tokenizer(spec.router.backbone), validation, scratch / "best", ray.train.torch.get_device())


def _train_designs(worker: Worker, progress: Progress, state: Path | None) -> None:
    designs = worker.spec.designs
    # The checkpoint's own design first; those before it are done. A new design begins without state.
    for design in designs[designs.index(progress.design) :]:
        if design != progress.design:
            progress, state = Progress(design), None
        _train_design(worker, progress, state)


def _train_design(worker: Worker, progress: Progress, state: Path | None) -> None:
    """Train from where `progress` stands to the last epoch, then leave the result in the router's folder."""
    router = worker.spec.router
    torch.manual_seed(router.seed)
    rows_per_worker = worker.spec.num_train // router.num_workers
    batch_size = router.batch_size // router.num_workers
    # The last batch of an epoch may be smaller; it is trained on too.
    steps_per_epoch = math.ceil(rows_per_worker / batch_size)
    # By epochs, not by the steps that were taken: another number of workers may leave out another odd row, and so have a step
    # more or less an epoch.
    first_step = len(progress.history) * steps_per_epoch
    model = build_model(router, worker.tokenizer)
    saved = None if state is None else SavedState(state)
    if saved is not None:
        saved.load_weights(model)
    engine = make_engine(model, router, steps_per_epoch * router.epochs, first_step)
    if saved is not None:
        saved.load_optimizer(engine)
    dataset = worker.spec.store.router(progress.design)
    counter = worker.spec.progress
    monitor = TrainingMonitor(progress.design, dataset, first_step, counter) if worker.is_first else None
    try:
        for epoch in range(len(progress.history), router.epochs):
            started = time.monotonic()
            torch.manual_seed(router.seed + epoch * router.num_workers + dist.get_rank())  # dropout, told again on a resume
            metrics = train_epoch(worker, engine, progress.design, epoch, monitor)
            metrics |= _validate(worker, engine, progress.design, batch_size, monitor)
            progress.history.append({"epoch": epoch + 1, **metrics})
            if progress.best_epoch == epoch + 1:
                save_weights(engine, worker.tokenizer, router.zero_stage, worker.best if worker.is_first else None)
            _checkpoint(worker, engine, progress)
            if monitor is not None:
                validation = {name: value for name, value in metrics.items() if name.startswith("validation")}
                monitor.log(validation, (epoch + 1) * steps_per_epoch)
                monitor.publish()
                _log_epoch(worker, progress, time.monotonic() - started)
    finally:
        if monitor is not None:
            # By hand: the workers but rank 0 have none, and `with` would need one.
            monitor.__exit__()
    engine.destroy()
    if worker.is_first:
        _export(worker, dataset, progress)
    dist.barrier()


def _validate(worker: Worker, engine: Any, design: str, batch_size: int, monitor: TrainingMonitor | None) -> dict[str, float]:
    """The epoch's metrics on the validation split, the same on every worker: by them all decide whether it is the best."""
    count = monitor.rows_done.add if monitor is not None else lambda _: None
    logits = validation_logits(engine, worker.validation["input_ids"], worker.tokenizer.pad_token_id, batch_size, count)
    # Rank 0 alone has the labels and pass rates. A list, because the broadcast fills it in place on the others.
    told: list[Any] = [validation_metrics(logits, worker.validation, design, worker.spec.router.seed) if worker.is_first else None]
    dist.broadcast_object_list(told, src=0, device=worker.device)
    if monitor is not None:
        monitor.rows_done.flush()
    return dict(told[0])


def train_epoch(worker: Worker, engine: Any, design: str, epoch: int, monitor: TrainingMonitor | None) -> dict[str, float]:
    """One pass over this worker's rows, each worker the same number of steps. Returns the epoch's loss and speed."""
    router = worker.spec.router
    batches = ray.train.get_dataset_shard("train").iter_torch_batches(
        batch_size=router.batch_size // router.num_workers,
        collate_fn=Collate(worker.tokenizer.pad_token_id, worker.spec.designs, multiple=1 if router.device == "cpu" else 8),
        device=worker.device,
        prefetch_batches=2,
        # At least the worker's whole part when it has up to 100,000 rows: then every order is equally likely.
        local_shuffle_buffer_size=min(100_000, worker.spec.num_train // router.num_workers),
        # Another order each epoch, and the same one when the epoch is repeated after a resume.
        local_shuffle_seed=router.seed + epoch,
    )
    # On the CPU, and moved to the device once, for the sum over workers.
    sums = torch.zeros(2, dtype=torch.float64)  # of the loss, of the rows
    rows_per_worker = worker.spec.num_train // router.num_workers
    first_step = epoch * math.ceil(rows_per_worker / (router.batch_size // router.num_workers))
    started = step_started = time.monotonic()
    for step, batch in enumerate(batches, start=first_step + 1):
        # (rows,): the model's output is (rows, 1), and the loss wants the labels' shape.
        logits = engine(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        loss = binary_cross_entropy_with_logits(logits.float(), batch[design])  # Eq. 2; float32, bf16 cannot tell 0.99 from 1
        engine.backward(loss)
        engine.step()
        num_rows, value, now = len(logits), loss.item(), time.monotonic()
        sums += torch.tensor([value * num_rows, num_rows], dtype=torch.float64)
        if monitor is not None:
            speed = num_rows * router.num_workers / (now - step_started)
            numbers = {"loss": value, "learning_rate": engine.get_lr()[0], "num_samples_per_s": speed}
            monitor.log(numbers, step)
            monitor.rows_done.add(num_rows * router.num_workers)  # parts are equal, so all workers are about as far
            done = int(sums[1]) * router.num_workers
            monitor.rows_done.say(epoch + 1, value, done, rows_per_worker * router.num_workers, done / (now - started))
        step_started = now
    # Before the sum over workers, which waits for the slowest.
    elapsed_s = time.monotonic() - started
    sums = sums.to(worker.device)
    dist.all_reduce(sums)
    total, num_rows = sums.tolist()
    return {"train_bce": total / num_rows, "num_samples_per_s": num_rows / elapsed_s}


def _checkpoint(worker: Worker, engine: Any, progress: Progress) -> None:
    """On every worker; rank 0 adds the best weights and the progress."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_state(engine, folder)
        if worker.is_first:
            shutil.copytree(worker.best, folder / "best")
            (folder / "progress.json").write_text(json.dumps({"design": progress.design, "history": progress.history}))
        # Each worker reports its own folder; Ray Train puts their files into one checkpoint, so names must differ between workers.
        reported = {"design": progress.design, **progress.history[-1]}
        ray.train.report(reported, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _export(worker: Worker, dataset: Dataset, progress: Progress) -> None:
    """On rank 0: weights, validation scores and history into `routers/<design>/`, the history last."""
    router = worker.spec.router
    predictor = RouterPredictor.of_weights(
        worker.best,
        max_length=router.max_length,
        batch_size=router.batch_size // router.num_workers,
        device=str(worker.device),
    )
    validation = worker.validation
    columns = {name: validation[name] for name in ("query_id", "pass_rate_weak", "pass_rate_strong", progress.design)}
    # Scored again, by the class that will score in production: thresholds are calibrated on exactly what it gives.
    columns["p_weak"] = predictor.score_ids(validation["input_ids"])
    columns["query_id"] = columns["query_id"].column
    table = pa.table(columns)
    # In this order: whoever finds TRAINED_FILE finds what is beside it whole.
    pafs.copy_files(str(worker.best), dataset.path, pafs.LocalFileSystem(), dataset.filesystem)
    pq.write_table(table, f"{dataset.path}/{VALIDATION_FILE}", filesystem=dataset.filesystem)
    with dataset.filesystem.open_output_stream(f"{dataset.path}/{TRAINED_FILE}") as stream:
        stream.write(json.dumps({"history": progress.history, "best_epoch": progress.best_epoch}).encode())
    shutil.rmtree(worker.best)


def _log_epoch(worker: Worker, progress: Progress, epoch_s: float) -> None:
    last, router = progress.history[-1], worker.spec.router
    logger.info(
        "router %s: epoch %d/%d, training loss %.4f, validation loss %.4f%s, APGR %.3f, %.0f samples/s, about %.0f s left",
        progress.design,
        last["epoch"],
        router.epochs,
        last["train_bce"],
        last["validation_bce"],
        " (best)" if progress.best_epoch == last["epoch"] else "",
        last["validation_apgr"],
        last["num_samples_per_s"],
        epoch_s * worker.epochs_left(progress),
    )


def _log_to_driver(progress: Any) -> None:
    """Rank 0's log lines go to the driver's log; what Ray says of each epoch goes nowhere."""
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    DataContext.get_current().enable_progress_bars = False
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    logger.setLevel(logging.INFO if ray.train.get_context().get_world_rank() == 0 else logging.WARNING)
    logger.handlers = [DriverHandler(progress)]
    logger.propagate = False
