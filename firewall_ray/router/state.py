"""The state of training between epochs, in a form that knows no engine: it can be loaded by another number of workers, another
ZeRO stage, another device.

Runs on every training worker. DeepSpeed keeps float32 masters of the weights and AdamW's moments in flat tensors, cut at
places that depend on the stage and on the number of workers. What is saved are the cuttings, each with the parameter it is
of and where in it: every worker writes its own, without any exchange, and whoever loads copies what overlaps with his.

In a file: `<kind>/<parameter>`, float32, (numel,), part of the flattened parameter; kind: weight, exp_avg or exp_avg_sq. In the
file's metadata: `starts`, the place of each parameter's part, and `step`, how many steps AdamW has taken.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from firewall_ray.errors import SystemFailure

if TYPE_CHECKING:
    import deepspeed

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names


@dataclass(frozen=True)
class Part:
    """Elements start to start + numel of a flattened parameter, which this worker keeps at master[at : at + numel].

    master: float32, flat or not; AdamW's state is keyed by it, and its moments have its shape.
    """

    name: str
    start: int
    numel: int
    master: torch.Tensor
    at: int = 0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of the master, or of a moment: a view, (numel,)."""
        return tensor.detach().view(-1).narrow(0, self.at, self.numel)


def save_state(engine: "deepspeed.DeepSpeedEngine", folder: Path) -> None:
    """Write this worker's parts to `folder`, which may hold those of others. Called after at least one step."""
    states = engine.basic_optimizer.state
    tensors, starts, step = {}, {}, 0.0
    for part in _parts_to_save(engine):
        state = states[part.master]
        starts[part.name], step = part.start, float(state["step"])
        for kind, tensor in {"weight": part.master, **{name: state[name] for name in MOMENTS}}.items():
            tensors[f"{kind}/{part.name}"] = part.of(tensor).cpu().contiguous()
    # A worker may have nothing to say, of a network with fewer parameters than workers. Its file then says so.
    metadata = {"step": str(step), "starts": json.dumps(starts)}
    save_file(tensors, folder / f"state-{dist.get_rank():05d}.safetensors", metadata)


class SavedState:
    """What all workers of an earlier run saved in one folder. Reads a parameter at a time: the files may be larger than memory."""

    def __init__(self, folder: Path) -> None:
        self.step = 0.0
        self._files: dict[str, list[tuple[Any, int]]] = defaultdict(list)  # parameter -> files with parts of it, their starts
        # Only the headers are read here, and files are mapped into memory, not loaded.
        for path in sorted(folder.glob("state-*.safetensors")):
            file = safe_open(path, framework="pt")
            metadata = file.metadata()
            self.step = max(self.step, float(metadata["step"]))
            for name, start in json.loads(metadata["starts"]).items():
                self._files[name].append((file, start))

    def read(self, kind: str, name: str, start: int, numel: int) -> torch.Tensor:
        """Elements start to start + numel of a flattened parameter or moment: float32, (numel,), on the CPU.

        Raises SystemFailure where the files do not hold them all.
        """
        found, num_found = torch.empty(numel), 0
        for file, there in self._files[name]:
            saved = file.get_slice(f"{kind}/{name}")
            # What of this file's part lies in the part asked for; nothing where they do not overlap.
            first, last = max(start, there), min(start + numel, there + saved.get_shape()[0])
            if first < last:
                found[first - start : last - start] = saved[first - there : last - there]
                num_found += last - first
        if num_found != numel:
            raise SystemFailure(
                f"The checkpoint of the training holds {num_found:,} of {numel:,} numbers of {kind} {name}: it is not one of this "
                "network, or files are gone. Begin again: python jobs/train_router.py --config FILE --force"
            )
        return found

    def load_weights(self, model: torch.nn.Module) -> None:
        """Before the engine wraps the model, which makes the weights in the precision and parts that it computes with."""
        for name, parameter in model.named_parameters():
            parameter.data.copy_(self.read("weight", name, 0, parameter.numel()).view_as(parameter))

    def load_optimizer(self, engine: "deepspeed.DeepSpeedEngine") -> None:
        """Into a new engine: masters (which it made from rounded weights, where it computes in bf16) and AdamW's moments."""
        states = engine.basic_optimizer.state
        for part in _parts(engine):
            state = states[part.master]
            # AdamW makes its state at its first step, which a new engine need not have taken.
            if not state or "step" not in state:
                state.update({name: torch.zeros_like(part.master) for name in MOMENTS})
            state["step"] = torch.tensor(self.step)  # its corrections for the moments' start at 0 depend on it
            for kind, tensor in {"weight": part.master, **{name: state[name] for name in MOMENTS}}.items():
                part.of(tensor).copy_(self.read(kind, part.name, part.start, part.numel))


def _parts(engine: "deepspeed.DeepSpeedEngine") -> Iterator[Part]:
    """What this worker keeps of each parameter; of some, nothing.

    DeepSpeed has functions for this (`safe_get_full_fp32_param` and others), but none for stage 0, and stage 3's cannot set
    a parameter whose size the workers do not divide, such as the one logit's bias.
    """
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    masters = _masters_of_stage_0(engine) if stage == 0 else {}
    for name, parameter in engine.module.named_parameters():
        # No master and no moments.
        if not parameter.requires_grad:
            continue
        if stage == 0:
            yield Part(name, 0, parameter.numel(), masters[parameter])
        elif stage == 3:  # each parameter is padded and cut into equal parts, one a worker
            group, at, width = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = width * dist.get_rank()
            if (numel := min(width, parameter.ds_numel - start)) > 0:  # all of it may be padding
                yield Part(name, start, numel, optimizer.fp32_partitioned_groups_flat[group], at)
        elif (mapping := parameter._hp_mapping) is not None:  # all of a group's parameters in a row, which is cut
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            master = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            yield Part(name, there.start, there.numel, master, here.start)


def _parts_to_save(engine: "deepspeed.DeepSpeedEngine") -> Iterator[Part]:
    """Each part by one worker: in stage 0 everybody has everything, and they share the writing."""
    shared = engine.zero_optimization_stage() == 0
    for i, part in enumerate(_parts(engine)):
        if not shared or i % dist.get_world_size() == dist.get_rank():
            yield part


def _masters_of_stage_0(engine: "deepspeed.DeepSpeedEngine") -> dict[torch.Tensor, torch.Tensor]:
    """In float32 a parameter is its own master; in bf16 DeepSpeed keeps one for each."""
    optimizer = engine.optimizer
    # Then `optimizer` is AdamW itself, not DeepSpeed's wrapper for bf16.
    if not hasattr(optimizer, "fp32_groups"):
        return {parameter: parameter for parameter in engine.module.parameters()}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}
