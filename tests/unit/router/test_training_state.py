"""What is saved of a training can be loaded by other workers: other ranks, another ZeRO stage, the moments whole."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.multiprocessing import spawn

from firewall_ray.config.base import BackboneConfig
from firewall_ray.config.router import RouterConfig
from firewall_ray.errors import SystemFailure
from firewall_ray.router.engine import make_engine
from firewall_ray.router.model import build_model, load_tokenizer
from firewall_ray.router.state import SavedState, save_state

# 36 and 30 are no multiples of 2 workers' alignments, and the head's bias is one number: parts that nobody can share equally.
BACKBONE = BackboneConfig(path=None, tokenizer="quickstart/models/weak", hidden_size=36, num_layers=1, intermediate_size=30)
STEPS, SAVED_AFTER = 6, 3


def steps(rank: int, num_workers: int, zero_stage: int, port: int, folder: str, goes_on: bool, moments: bool) -> None:
    """A worker of a group that takes all steps and saves in the middle, or of one that goes on from there. Every step is the
    same 8 rows, whoever has them."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(num_workers), LOCAL_RANK=str(rank)
    )
    dist.init_process_group("gloo", rank=rank, world_size=num_workers)
    torch.set_num_threads(1)
    router = RouterConfig(
        backbone=BACKBONE,
        batch_size=8,
        num_workers=num_workers,
        zero_stage=zero_stage,
        precision="fp32",
        learning_rate=1e-2,
        max_length=32,
    )
    model = build_model(router, load_tokenizer(BACKBONE))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for module in model.modules():  # dropout would draw other numbers for other workers
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    first = SAVED_AFTER if goes_on else 0
    if goes_on:
        saved = SavedState(Path(folder))
        saved.load_weights(model)
    engine = make_engine(model, router, STEPS, first)
    if goes_on and moments:
        saved.load_optimizer(engine)
    losses = []
    for step in range(first, STEPS):
        if step == SAVED_AFTER and not goes_on:
            save_state(engine, Path(folder))
        draws = torch.Generator().manual_seed(step)
        ids, labels = torch.randint(5, 50, (8, 12), generator=draws), torch.rand(8, generator=draws)
        mine = slice(rank * 8 // num_workers, (rank + 1) * 8 // num_workers)
        logits = engine(input_ids=ids[mine], attention_mask=torch.ones_like(ids[mine])).logits[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[mine])
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / num_workers)
    if rank == 0:
        Path(folder, f"losses-{goes_on}-{moments}.json").write_text(json.dumps([losses, engine.get_lr()]))
    dist.destroy_process_group()


def group(num_workers: int, zero_stage: int, folder: Path, goes_on: bool = False, moments: bool = True) -> Any:
    """(loss of each step, the learning rates at the end) of a group of workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(steps, (num_workers, zero_stage, port, str(folder), goes_on, moments), nprocs=num_workers)
    return json.loads((folder / f"losses-{goes_on}-{moments}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [((2, 2), (1, 0)), ((1, 2), (2, 3))])
def test_training_goes_on_with_other_workers_and_stages_as_if_nothing_had_been(
    before: tuple[int, int], after: tuple[int, int], tmp_path: Path
) -> None:
    whole, rates = group(*before, tmp_path)
    rest, rates_then = group(*after, tmp_path, goes_on=True)
    assert rest == pytest.approx(whole[SAVED_AFTER:], abs=1e-5)
    assert rates_then == rates
    # And not because moments don't matter: without them the weights are the same, what is made of them is not.
    if after == (1, 0):
        forgetful, _ = group(*after, tmp_path, goes_on=True, moments=False)
        assert forgetful[0] == pytest.approx(whole[SAVED_AFTER], abs=1e-5)
        assert abs(forgetful[-1] - whole[-1]) > 1e-3


def test_parts_are_put_together_wherever_they_were_cut(tmp_path: Path) -> None:
    def write(rank: int, start: int, values: list[float]) -> None:
        tensors = {f"{kind}/w": torch.tensor(values) for kind in ("weight", "exp_avg", "exp_avg_sq")}
        save_file(tensors, tmp_path / f"state-{rank:05d}.safetensors", {"step": "7", "starts": json.dumps({"w": start})})

    write(0, 0, [0, 1, 2])
    write(1, 3, [3, 4])
    saved = SavedState(tmp_path)
    assert saved.step == 7
    assert saved.read("weight", "w", 0, 5).tolist() == [0, 1, 2, 3, 4]
    assert saved.read("exp_avg", "w", 2, 2).tolist() == [2, 3]
    with pytest.raises(SystemFailure, match=r"5 of 6 numbers of weight w.*--force"):
        saved.read("weight", "w", 0, 6)
    with pytest.raises(SystemFailure, match="0 of 1 numbers of weight other"):
        saved.read("weight", "other", 0, 1)
