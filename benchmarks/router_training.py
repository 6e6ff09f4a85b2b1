"""Router training against a plain PyTorch loop: the same network, rows, batches and processes, turn by turn in one run.

The bound is what one would write by hand: DistributedDataParallel, AdamW, the token ids in memory, nothing recorded. Ours is
the loop that trains: Ray Data shards, DeepSpeed, and TensorBoard and gauges at every step. The same worker processes run an
epoch of the one and an epoch of the other by turns, so that whatever else the machine does hits both alike; the ratio is the
median over the pairs. Counted is a whole epoch of steps, the start of its iterator included; start-up, validation and
checkpoints are left out, and the first pair is warm-up.

    python benchmarks/router_training.py --config jobs/configs/quickstart.yaml
"""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
import typer
from ray.train.torch import TorchTrainer
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from firewall_ray.cluster.connect import connected
from firewall_ray.cluster.progress import ProgressCounter
from firewall_ray.config.run import load_config
from firewall_ray.router.data import FixedShards, pad_rows
from firewall_ray.router.engine import make_engine, parameter_groups
from firewall_ray.router.loop import TrainSpec, Worker, start_worker, train_epoch
from firewall_ray.router.model import build_model
from firewall_ray.router.telemetry import TrainingMonitor
from firewall_ray.schemas import LABEL_DESIGNS, LABELS
from firewall_ray.stages.train_router import datasets, for_workers
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.tiny_world import TinyWorld

DESIGN = "soft_block"


class PlainLoop:
    """Distributed training as one would write it by hand, over this worker's rows."""

    def __init__(self, worker: Worker) -> None:
        self.worker, router = worker, worker.spec.router
        rows = list(ray.train.get_dataset_shard("train").iter_rows())
        self.ids = [row["input_ids"] for row in rows]
        self.labels = torch.tensor([row[DESIGN] for row in rows])
        self.model = DistributedDataParallel(build_model(router, worker.tokenizer).to(worker.device)).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, router.weight_decay), lr=router.learning_rate)

    def epoch(self, epoch: int) -> float:
        """Samples/s over all workers."""
        router, device = self.worker.spec.router, self.worker.device
        order = np.random.default_rng(epoch).permutation(len(self.ids))
        size = router.batch_size // router.num_workers
        started = time.monotonic()
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            input_ids, mask = pad_rows([self.ids[i] for i in rows], self.worker.tokenizer.pad_token_id)
            logits = self.model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits[:, 0]
            loss = binary_cross_entropy_with_logits(logits, self.labels[rows].to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), router.gradient_clipping)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return len(order) * router.num_workers / (time.monotonic() - started)


def compare(config: dict[str, Any]) -> list[tuple[float, float]]:
    """On each worker: `pairs` epochs of each loop by turns. Returns a list of (ours, plain) in samples/s."""
    spec: TrainSpec = config["spec"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        worker = start_worker(spec, Path(scratch))
        plain = PlainLoop(worker)
        torch.manual_seed(spec.router.seed)
        num_steps = math.ceil(len(plain.ids) / (spec.router.batch_size // spec.router.num_workers)) * config["pairs"]
        engine = make_engine(build_model(spec.router, worker.tokenizer), spec.router, num_steps)
        monitor = TrainingMonitor(DESIGN, spec.store.router(DESIGN), 0, spec.progress) if worker.is_first else None
        found = []
        for epoch in range(config["pairs"]):
            dist.barrier()
            ours = train_epoch(worker, engine, DESIGN, epoch, monitor)["num_samples_per_s"]
            dist.barrier()
            found.append((ours, plain.epoch(epoch)))
    return found


def write_labels(store: ArtifactStore, num_train: int) -> None:
    """Labels of tiny_world queries without any model: only their number and their prompts' lengths matter here."""
    queries = TinyWorld().load({"seed": 0, "num_train": num_train, "num_validation": 8, "num_test": 0})
    rates = {"pass_rate_weak": 0.0, "pass_rate_strong": 1.0, "greedy_weak": False, "greedy_strong": True, "num_samples": 1}
    rows = [
        {
            **{name: getattr(query, name) for name in ("query_id", "task", "split", "prompt")},
            **rates,
            **dict.fromkeys(LABEL_DESIGNS, float(i % 2)),
        }
        for i, query in enumerate(queries)
    ]
    dataset = store.labels()
    dataset.begin({})
    with dataset.writer() as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=LABELS))
    dataset.finish({}, {})


def main(
    config: Annotated[str, typer.Option(help="The run's YAML: its router section is what is measured.")],
    num_train: Annotated[int, typer.Option(min=100, help="Training rows, drawn from tiny_world.")] = 1_500,
    pairs: Annotated[int, typer.Option(min=2, help="Epochs of each loop; the first pair is warm-up.")] = 8,
    zero_stage: Annotated[int | None, typer.Option(min=0, max=3, help="Instead of the config's.")] = None,
) -> None:
    """Print samples/s of both loops and the ratio (at least 0.9 is asked for)."""
    overrides = [] if zero_stage is None else [f"router.zero_stage={zero_stage}"]
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_config(config, overrides, root=folder)
        router = for_workers(loaded.router)
        store = ArtifactStore(folder)
        write_labels(store, num_train)
        with connected(loaded.ray):
            progress = ray.remote(num_cpus=0)(ProgressCounter).remote()
            trainer = TorchTrainer(
                compare,
                train_loop_config={"spec": TrainSpec(store, router, (DESIGN,), num_train, progress), "pairs": pairs},
                datasets=datasets(router, store.labels(), [DESIGN], None),
                dataset_config=FixedShards(),
                scaling_config=ray.train.ScalingConfig(num_workers=router.num_workers, use_gpu=router.device == "gpu"),
                run_config=ray.train.RunConfig(storage_path=f"{folder}/train"),
            )
            ours, plain = np.array(trainer.fit().return_value[1:]).T
    summary = {
        "ours_samples_per_s": float(np.median(ours)),
        "plain_samples_per_s": float(np.median(plain)),
        "ratio": float(np.median(ours / plain)),
        "ratios": np.round(ours / plain, 3).tolist(),
        "num_train": num_train,
        "num_workers": router.num_workers,
        "batch_size": router.batch_size,
        "zero_stage": router.zero_stage,
        "device": router.device,
        "seed": router.seed,
        "versions": versions(),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    typer.run(main)
