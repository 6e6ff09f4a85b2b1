"""What runs the router's network on a CPU: torch as it is against torch.compile, int8, ONNX Runtime and OpenVINO.

The bound is torch eager, what `RouterPredictor` runs. Same weights, token ids and threads; rounds go through all runtimes in
turn. A runtime is only of use where its scores lie within 1e-3 of torch eager's. OpenVINO is what serving takes. ONNX Runtime
is no requirement of this project, and left out where it is not installed (pip install onnxruntime onnx onnxscript).

    python benchmarks/router_runtime.py --router runs/quickstart/routers/soft_block
    python benchmarks/router_runtime.py --shape deberta-v3-large --rounds 3 --repeats 3
"""

import importlib.util
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, PreTrainedModel

from firewall_ray.router.cpu_runtime import Logits, compile_for_cpu
from firewall_ray.router.data import encode, pad_rows
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.store.dataset import versions
from firewall_ray.tasks.tiny_world import draw_unique

Runtime = Callable[[Tensor, Tensor], np.ndarray]
REFERENCE = "torch eager"
TOLERANCE = 1e-3  # in p_weak


# Runtimes ------------------------------------------------------------------------------------------------------------


def of_torch(network: nn.Module) -> Runtime:
    @torch.inference_mode()
    def run(ids: Tensor, mask: Tensor) -> np.ndarray:
        return network(ids, mask).numpy()

    return run


def onnx_file(network: nn.Module, folder: Path) -> Path:
    """The network exported with both axes dynamic."""
    path = folder / "router.onnx"
    ids, mask = (torch.ones(3, 20, dtype=torch.int64) for _ in range(2))  # one tensor given twice would become one input
    axes = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(network, (ids, mask), dynamo=True, dynamic_shapes=(axes, axes), verbose=False)
    assert program is not None
    program.save(path, external_data=True)
    return path


def of_onnx(path: Path, threads: int) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda ids, mask: session.run(None, dict(zip(names, (ids.numpy(), mask.numpy()), strict=True)))[0]


def quantised(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name("router_int8.onnx")
    quantize_dynamic(path, target, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})
    return target


def of_openvino(model: PreTrainedModel, threads: int) -> Runtime:
    network = compile_for_cpu(model, threads, max_length=64)
    return lambda ids, mask: network(ids, mask).numpy()


def runtimes(model: PreTrainedModel, threads: int, folder: Path, without: list[str]) -> dict[str, Runtime]:
    """Those that are installed and can run this network, but for `without`. One that cannot is a finding too, and printed."""
    network = Logits(model).eval()
    found = {REFERENCE: of_torch(network)}
    makers: dict[str, Callable[[], Runtime]] = {
        "torch.compile": lambda: of_torch(torch.compile(network, dynamic=True)),
        "OpenVINO": lambda: of_openvino(model, threads),
        "torch int8": lambda: of_torch(torch.ao.quantization.quantize_dynamic(network, {nn.Linear})),
    }
    if "ONNX Runtime" not in without and importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        exported = onnx_file(network, folder)
        makers["ONNX Runtime"] = lambda: of_onnx(exported, threads)
        makers["ONNX Runtime int8"] = lambda: of_onnx(quantised(exported), threads)
    example = torch.ones(2, 8, dtype=torch.int64)
    for name, make in makers.items():
        if name in without:
            continue
        try:
            runtime = make()
            runtime(example, example)
        except Exception as e:
            print(f"{name}: left out, {type(e).__name__}: {str(e).strip().splitlines()[0][:200]}")
        else:
            found[name] = runtime
    return found


# Measurement ---------------------------------------------------------------------------------------------------------


def random_large() -> PreTrainedModel:
    """DeBERTa-v3-large's shape with random weights, whose logits are stretched so that scores are not all alike."""
    torch.manual_seed(0)
    model = DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=128_100, hidden_size=1_024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4_096,
            max_relative_positions=-1, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True, relative_attention=True,
            pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, max_position_embeddings=512, num_labels=1,
        )
    )  # fmt: skip
    return model.eval()


def p_weak(runtime: Runtime, rows: list[list[int]], pad_token_id: int) -> np.ndarray:
    """One at a time, as an idle replica scores."""
    logits = np.array([runtime(*pad_rows([row], pad_token_id))[0, 0] for row in rows], dtype=np.float64)
    return 1 / (1 + np.exp(-logits))


def milliseconds(runtime: Runtime, batch: tuple[Tensor, Tensor], repeats: int) -> float:
    """The median of one call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        runtime(*batch)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def main(
    router: Annotated[str | None, typer.Option(help="Folder of a trained router, its router.json included.")] = None,
    shape: Annotated[str | None, typer.Option(help="deberta-v3-large: random weights, 64 tokens a prompt.")] = None,
    batch_size: Annotated[list[int], typer.Option(min=1, help="Repeatable.")] = [1, 16],  # noqa: B006
    num_prompts: Annotated[int, typer.Option(min=1, help="Whose scores are compared.")] = 1_000,
    repeats: Annotated[int, typer.Option(min=1, help="Calls a round.")] = 50,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    without: Annotated[list[str], typer.Option(help="A runtime to leave out: each holds the weights once more. Repeatable.")] = [],  # noqa: B006
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Print milliseconds a call of each runtime, the ratio to torch eager and the largest difference of its scores."""
    if (router is None) == (shape is None) or shape not in (None, "deberta-v3-large"):
        raise typer.BadParameter("give --router FOLDER or --shape deberta-v3-large")
    torch.set_num_threads(threads)
    if router is not None:
        predictor = RouterPredictor(router, num_threads=threads)
        prompts = [PROMPT_TEMPLATE.format(question=item.question) for item in draw_unique(1, num_prompts)]
        rows, _ = encode(predictor.tokenizer, prompts, predictor.max_length)
        model, pad_token_id = predictor.model, predictor.tokenizer.pad_token_id
    else:
        model, pad_token_id = random_large(), 0
        rows = np.random.default_rng(0).integers(1, 128_000, (num_prompts, 64)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        found = runtimes(model, threads, Path(folder), without)
        results = measure(found, rows, pad_token_id, batch_size, repeats, rounds)
    show(results, batch_size)
    summary = {"benchmark": "router_runtime", "of": router or shape, "runtimes": results, "threads": threads}
    print(json.dumps({**summary, "num_prompts": num_prompts, "rounds": rounds, "versions": versions()}))


def measure(
    found: dict[str, Runtime], rows: list[list[int]], pad_token_id: int, batch_sizes: list[int], repeats: int, rounds: int
) -> list[dict[str, Any]]:
    scores = {name: p_weak(runtime, rows, pad_token_id) for name, runtime in found.items()}  # a warm-up as well
    batches = {size: pad_rows([rows[i % len(rows)] for i in range(size)], pad_token_id) for size in batch_sizes}
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for size, batch in batches.items():
            for name, runtime in found.items():
                runtime(*batch)
                times[name, size].append(milliseconds(runtime, batch, repeats))
    return [
        {
            "runtime": name,
            "ms": {size: round(statistics.median(times[name, size]), 3) for size in batch_sizes},
            "ratio": {
                size: round(statistics.median(np.divide(times[name, size], times[REFERENCE, size]).tolist()), 3)
                for size in batch_sizes
            },
            "largest_score_difference": float(np.abs(scores[name] - scores[REFERENCE]).max()),
        }
        for name in found
    ]


def show(results: list[dict[str, Any]], batch_sizes: list[int]) -> None:
    table = Table("runtime", *(f"batch {size}: ms (ratio)" for size in batch_sizes), "scores differ by", f"within {TOLERANCE:g}")
    for each in results:
        cells = [f"{each['ms'][size]:.2f} ({each['ratio'][size]:.2f})" for size in batch_sizes]
        difference = each["largest_score_difference"]
        table.add_row(each["runtime"], *cells, f"{difference:.1e}", "yes" if difference <= TOLERANCE else "no")
    Console(width=132).print(table)


if __name__ == "__main__":
    typer.run(main)
