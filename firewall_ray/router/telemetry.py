"""Where training can be watched: TensorBoard event files, and gauges for the Ray dashboard and Prometheus.

Runs on rank 0's worker. The event files lie in `routers/<name>/_tensorboard/`, live when ROOT is local, epoch by epoch
when it is an object store.
"""

import tempfile
from collections.abc import Mapping

from pyarrow import fs as pafs
from ray.util.metrics import Gauge
from tensorboardX import SummaryWriter

from firewall_ray.artifacts import Dataset

TENSORBOARD_FOLDER = "_tensorboard"


class TrainingMonitor:
    """Writes numbers by step. Use as a context manager: leaving it closes the files."""

    def __init__(self, design: str, router: Dataset, first_step: int) -> None:
        self.design = design
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
            self.remote.create_dir(self.target, recursive=True)
            pafs.copy_files(self.folder, self.target, pafs.LocalFileSystem(), self.remote)
