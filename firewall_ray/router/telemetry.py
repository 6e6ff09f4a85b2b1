"""Where training can be watched: TensorBoard event files, gauges for the Ray dashboard and Prometheus, and the driver's display.

Runs on rank 0's worker. The event files lie in `routers/<name>/_tensorboard/`, live when ROOT is local, epoch by epoch
when it is an object store.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from pyarrow import fs as pafs
from ray.util.metrics import Gauge
from tensorboardX import SummaryWriter

from firewall_ray.store.dataset import Dataset

TENSORBOARD_FOLDER = "_tensorboard"
COUNT_EVERY_S = 1.0  # as often as the driver looks
SAY_EVERY_S = 30.0  # a line among those that the driver writes every 15 s

logger = logging.getLogger("firewall_ray")


class RowsDone:
    """Tells the driver's `ProgressCounter` of rows, those of training and of validation alike, over all workers.

    At most once a second: a step of a small router takes milliseconds, and the message would be dearer. And twice a minute a
    line with what the sum of rows cannot tell, the loss.
    """

    def __init__(self, counter: Any, design: str) -> None:
        self._counter, self._design = counter, design
        self._rows = 0
        self._losses: list[float] = []
        self._counted_at = self._said_at = time.monotonic()

    def add(self, num_rows: int) -> None:
        self._rows += num_rows
        if time.monotonic() - self._counted_at >= COUNT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Before what takes long without rows, too: a checkpoint."""
        if self._rows:
            self._counter.add.remote(self._design, {"rows": self._rows})
        self._rows, self._counted_at = 0, time.monotonic()

    def say(self, epoch: int, loss: float, num_rows: int, num_rows_of_epoch: int, num_samples_per_s: float) -> None:
        """Where the epoch stands, if the last such line is long ago. Called at each step with its loss."""
        self._losses.append(loss)
        if time.monotonic() - self._said_at < SAY_EVERY_S:
            return
        logger.info(
            "router %s: epoch %d, %s of %s training rows, loss %.4f over the last %d steps, %.1f samples/s, %.0f s left of these",
            self._design,
            epoch,
            f"{num_rows:,}",
            f"{num_rows_of_epoch:,}",
            sum(self._losses) / len(self._losses),
            len(self._losses),
            num_samples_per_s,
            max(0, num_rows_of_epoch - num_rows) / num_samples_per_s,
        )
        self._losses, self._said_at = [], time.monotonic()


class TrainingMonitor:
    """Writes numbers by step. Use as a context manager: leaving it closes the files. counter: the driver's `ProgressCounter`."""

    def __init__(self, design: str, router: Dataset, first_step: int, counter: Any) -> None:
        self.design = design
        self.rows_done = RowsDone(counter, design)
        self.target = f"{router.path}/{TENSORBOARD_FOLDER}"
        self.remote = None if isinstance(router.filesystem, pafs.LocalFileSystem) else router.filesystem
        self.folder = tempfile.mkdtemp() if self.remote else self.target
        # Steps from first_step on are told again after a resume; TensorBoard drops what it had of them.
        self.writer = SummaryWriter(self.folder, purge_step=first_step or None)
        self.gauges: dict[str, Gauge] = {}

    def __enter__(self) -> "TrainingMonitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.publish()
        self.writer.close()
        if self.remote:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
            if name not in self.gauges:
                self.gauges[name] = Gauge(f"firewall_ray_router_{name}", tag_keys=("design",))
            self.gauges[name].set(value, tags={"design": self.design})

    def publish(self) -> None:
        """Flush; to an object store, upload the files as they are."""
        self.writer.flush()
        if self.remote is not None:
            # Event files only grow, and an object store cannot append: the whole of them again.
            self.remote.create_dir(self.target, recursive=True)
            pafs.copy_files(self.folder, self.target, pafs.LocalFileSystem(), self.remote)
