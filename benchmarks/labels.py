"""How fast are labels made, Parquet to Parquet, and does memory stay flat?

Measured: `run_labeling` on generated grades, in a process of its own, at 1/4, 1/2 and all of the queries. Bound: reading the
same three inputs and writing the same output with nothing in between, in the same run. Input is generated in a temporary
folder first and not timed. Defaults: 312,500 queries x 32 samples x 2 models = 20 million graded samples.

    python benchmarks/labels.py
    python benchmarks/labels.py --num-queries 2500000      # does memory still stay flat?
"""

import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from firewall_ray.config.run import RunConfig
from firewall_ray.stages.label import GRADE_COLUMNS, QUERY_COLUMNS, run_labeling
from firewall_ray.store.layout import ArtifactStore

CHUNK_ROWS = 16_384
WORDS = 40  # About 250 characters a prompt, as in GSM8K.


def generate(root: str, num_queries: int, num_samples: int, seed: int) -> None:
    """Foreign queries/ and grades/: every model's rows in another order, in several files."""
    rng = np.random.default_rng(seed)
    store = ArtifactStore(root)
    words = np.array([f"word{number:03}" for number in range(500)])
    for start in range(0, num_queries, CHUNK_ROWS):
        size = min(CHUNK_ROWS, num_queries - start)
        prompts = [" ".join(row) for row in words[rng.integers(0, len(words), (size, WORDS))]]
        ids = query_ids(np.arange(start, start + size))
        same = {"task": ["bench"] * size, "split": ["train"] * size, "question": prompts, "reference": ["{}"] * size}
        write(store.queries(), start, {"query_id": ids, **same, "prompt": prompts})
    for model, skill in (("weak", 0.4), ("strong", 0.7)):
        order = rng.permutation(num_queries)
        for start in range(0, num_queries, CHUNK_ROWS):
            numbers = order[start : start + CHUNK_ROWS]
            rates = rng.beta(skill, 1 - skill, len(numbers))
            correct = pa.array(rng.random(len(numbers) * num_samples) < np.repeat(rates, num_samples))
            lists = pa.ListArray.from_arrays(np.arange(len(numbers) + 1, dtype=np.int32) * num_samples, correct)
            columns = {"query_id": query_ids(numbers), "task": ["bench"] * len(numbers), "model": [model] * len(numbers)}
            greedy, error = pa.array(rates > 0.5), pa.nulls(len(numbers), pa.string())
            write(store.grades(model), start, {**columns, "correct": lists, "greedy_correct": greedy, "error": error})


def query_ids(numbers: np.ndarray) -> list[str]:
    """16 hex digits each, like the real ones: a bijection of 64-bit numbers, so never twice the same."""
    return [f"{number:016x}" for number in (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).tolist()]


def write(dataset: Any, start: int, columns: dict[str, Any]) -> None:
    dataset.filesystem.create_dir(dataset.path)
    schema = pa.schema([field for field in dataset.schema if field.name in columns])  # without the optional ones
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    pq.write_table(table, f"{dataset.path}/{start:012}.parquet", compression="zstd")


def label(root: str) -> None:
    config = RunConfig.model_validate(
        {"root": root, "queries": {"tasks": {"tiny_world": {}}}, "models": {"weak": {"path": "-"}, "strong": {"path": "-"}}}
    )
    run_labeling(config, ArtifactStore(root), force=True)


def read_and_write(root: str) -> None:
    """The bound: the same columns in, the finished labels out."""
    store = ArtifactStore(root)
    for dataset, columns in (
        (store.queries(), QUERY_COLUMNS),
        (store.grades("weak"), GRADE_COLUMNS),
        (store.grades("strong"), GRADE_COLUMNS),
    ):
        for _ in dataset.iter_batches(columns, CHUNK_ROWS):
            pass
    with tempfile.TemporaryFile() as file, pq.ParquetWriter(file, store.labels().schema, compression="zstd") as writer:
        for batch in store.labels().iter_batches(batch_rows=CHUNK_ROWS * 4):
            writer.write_batch(batch)


def measured(work: Callable[[str], None], root: str) -> dict[str, float]:
    """Wall and CPU seconds and peak resident memory of `work` in a fresh process; imports are not timed."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (work, root))


def _timed(work: Callable[[str], None], root: str) -> dict[str, float]:
    before_mib = _peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    work(root)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": _peak_mib(), "imports_mib": before_mib}


def _peak_mib() -> float:
    """Of this process alone. Not getrusage: its ru_maxrss starts at the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(
    num_queries: Annotated[int, typer.Option(min=4, help="Queries of the full size.")] = 312_500,
    num_samples: Annotated[int, typer.Option(min=1, help="n, of each model.")] = 32,
    repeats: Annotated[
        int, typer.Option(min=1, help="Runs of each; the fastest counts, since other work only slows one down.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Draws prompts and verdicts.")] = 0,
) -> None:
    """Print graded samples/s of labeling, its ratio to only reading and writing, and peak memory by size; JSON last."""
    print(
        f"Python {platform.python_version()}, pyarrow {pa.__version__}, numpy {np.__version__}, {multiprocessing.cpu_count()} CPUs"
    )
    print(f"{'queries':>10} {'wall s':>8} {'CPU s':>8} {'samples/s':>12} {'bound s':>8} {'of bound':>8} {'peak MiB':>9}")
    rows = []
    for share in (4, 2, 1):
        size = num_queries // share
        with tempfile.TemporaryDirectory(prefix="firewall-ray-bench-") as root:
            generate(root, size, num_samples, seed)
            # In turns, so that other work on the machine slows both down alike.
            runs, bounds = zip(*((measured(label, root), measured(read_and_write, root)) for _ in range(repeats)), strict=True)
        best, bound = (min(results, key=lambda result: result["wall_s"]) for results in (runs, bounds))
        peak_mib = max(run["peak_mib"] for run in runs)
        rate, ratio = 2 * size * num_samples / best["wall_s"], bound["wall_s"] / best["wall_s"]
        rows.append(
            {"queries": size, **best, "peak_mib": peak_mib, "samples_per_s": rate, "bound_s": bound["wall_s"], "of_bound": ratio}
        )
        print(
            f"{size:>10,} {best['wall_s']:>8.2f} {best['cpu_s']:>8.2f} {rate:>12,.0f} "
            f"{bound['wall_s']:>8.2f} {ratio:>8.2f} {peak_mib:>9.0f}"
        )
    print(json.dumps({"benchmark": "labels", "num_samples": num_samples, "repeats": repeats, "seed": seed, "rows": rows}))


if __name__ == "__main__":
    typer.run(main)
