"""Does it scale? Rows/s at 1 and 2 workers, and the driver's memory and time from 10,000 to a million rows.

Workers: the real sampling job (vLLM, the quickstart's strong model, n = 32) and the real scoring actors, with one and with two of
them. Measured over the last six tenths of the rows, when all of them are at work; two workers are bound by two cores, on which
Ray Data and Parquet run as well.

Rows: sampling of both models, grading and labelling as the jobs do them (queries, engines on actors, checkpoint, Parquet), and
sampling again when all is done; with an engine that takes a fixed time a row in the place of vLLM, n = 2, and the config's
defaults. ROOT is an S3 (`slow_s3.py`) where each request takes 50 ms, as those of a real one do: there a file too many costs
seconds, on a local disk nothing. Each size in a process of its own, the driver; stage by stage its peak memory, the seconds, and
what was asked of the S3: opens are the GET and HEAD requests of files of rows. What bounds sampling is the engine: rows divided by
its speed.

    python benchmarks/scaling.py workers --root runs/quickstart     # after make quickstart
    python benchmarks/scaling.py rows --plot docs/images/scaling.png
    python benchmarks/scaling.py rows --root-kind local --size 1000000
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from arrivals import arrivals, middle
from labels import query_ids
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from slow_s3 import SlowS3, running

from firewall_ray.cluster.connect import connected
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.evaluation.plots import PALETTE, STYLE, WEAK, png
from firewall_ray.schemas import QUERIES, SAMPLES
from firewall_ray.stages import sample as sampling
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.stages.sample import run_sampling
from firewall_ray.stages.score import scored_batches
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore

QUICKSTART = "jobs/configs/quickstart.yaml"
CHUNK_ROWS = 50_000
WARM_SHARE = 0.4  # of the rows, before the clock starts
ANSWERS = ("yes", "no")  # of every query, the first of them right

app = typer.Typer(add_completion=False, help="Print a table, and one JSON line last.")


# Workers -------------------------------------------------------------------------------------------------------------


def sampling_rate(root: str, num_queries: int, num_workers: int) -> float:
    """Rows/s of the sampling job, by the times at which they came back."""
    workers = f"models.strong.replicas={{min: {num_workers}, max: {num_workers}}}"
    sizes = f"queries.tasks.tiny_world={{num_train: {num_queries}, num_validation: 0, num_test: 0}}"
    config = load_config(QUICKSTART, [workers, sizes, "ray.dashboard=false"], root)
    store = ArtifactStore(root)
    run_prepare_queries(config, store)
    with connected(config.ray), arrivals() as seen:
        run_sampling(config, store, models=["strong"])
    tables, elapsed_s = middle(seen, WARM_SHARE)
    return sum(map(len, tables)) / elapsed_s


def scoring_rate(store: ArtifactStore, prompts: pa.Table, num_workers: int) -> float:
    """Rows/s of the scoring actors with the first router of the quickstart."""
    import ray.data

    config = load_config(QUICKSTART, [f"scoring.replicas={{min: {num_workers}, max: {num_workers}}}", "ray.dashboard=false"])
    with tempfile.TemporaryDirectory() as folder, connected(config.ray):
        pq.write_table(prompts, f"{folder}/prompts.parquet", row_group_size=8_192)
        batches = scored_batches(ray.data.read_parquet(folder), store, config.router.designs[:1], config.scoring)
        done = [(time.perf_counter(), len(batch)) for batch in batches]
    first = int(len(done) * WARM_SHARE)
    return sum(rows for _, rows in done[first + 1 :]) / (done[-1][0] - done[first][0])


@app.command()
def workers(
    root: Annotated[str, typer.Option(help="A finished run, for its router.")] = "runs/quickstart",
    num_queries: Annotated[int, typer.Option(min=500, help="To sample.")] = 2_400,
    num_prompts: Annotated[int, typer.Option(min=10_000, help="To score; the queries over and over.")] = 80_000,
) -> None:
    """Sampling and scoring with real models, one and two workers."""
    rows = []
    print(f"{'workers':>8} {'sampling rows/s':>16} {'scoring rows/s':>15}")
    for num_workers in (1, 2):
        with tempfile.TemporaryDirectory(prefix="firewall-ray-bench-") as folder:
            sampled_per_s = sampling_rate(folder, num_queries, num_workers)
            prompts = ArtifactStore(folder).queries().read(["query_id", "prompt"])
        repeated = prompts.take(np.arange(num_prompts) % len(prompts))
        scored_per_s = scoring_rate(ArtifactStore(root), repeated, num_workers)
        rows.append({"workers": num_workers, "sampled_per_s": sampled_per_s, "scored_per_s": scored_per_s})
        print(f"{num_workers:>8} {sampled_per_s:>16,.1f} {scored_per_s:>15,.0f}")
    print(json.dumps({"benchmark": "scaling_workers", "num_queries": num_queries, "rows": rows, "versions": versions()}))


# Rows ----------------------------------------------------------------------------------------------------------------


class StandInEngine:
    """In the place of `VllmSampler`: the same rows out, each after `1 / rows_per_s`, whatever is asked."""

    rows_per_s = 10_000.0

    def __init__(self, model: str, config: Any, spec: Any, progress: Any) -> None:
        self._model = model
        self._progress = progress
        self._free_at = 0.0

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + len(batch) / self.rows_per_s
        await asyncio.sleep(self._free_at - now)
        self._progress.add.remote(self._model, {"rows": len(batch), "tokens": len(batch) * len(ANSWERS), "errors": 0})
        yield self._answers(batch)

    def _answers(self, batch: pa.Table) -> pa.Table:
        size, n = len(batch), len(ANSWERS)
        offsets = np.arange(size + 1, dtype=np.int32) * n
        lists = {
            "texts": pa.array(ANSWERS * size),
            "num_generated_tokens": pa.array(np.ones(size * n, np.int32)),
            "finish_reasons": pa.array(["stop"] * size * n),
        }
        columns = {
            "query_id": batch["query_id"].cast(pa.string()),
            "task": batch["task"].cast(pa.string()),
            "model": pa.array([self._model] * size),
            **{name: pa.ListArray.from_arrays(offsets, values) for name, values in lists.items()},
            "greedy_text": pa.array(ANSWERS[:1] * size),
            "greedy_finish_reason": pa.array(["stop"] * size),
            "greedy_margin": pa.array(np.full(size, 0.5, np.float32)),
            "num_prompt_tokens": pa.array(np.full(size, 24, np.int32)),
            "error": pa.nulls(size, pa.string()),
        }
        return pa.table([columns[name] for name in SAMPLES.names], schema=SAMPLES)


def use_stand_in() -> None:
    """From here on the sampling stage starts `StandInEngine` where it would start vLLM."""
    sampling.VllmSampler = StandInEngine  # type: ignore[misc]


def generate(store: ArtifactStore, num_rows: int) -> None:
    """A foreign queries/ with prompts as long as tiny_world's, in several files."""
    queries = store.queries()
    queries.filesystem.create_dir(queries.path, recursive=True)
    for start in range(0, num_rows, CHUNK_ROWS):
        numbers = np.arange(start, min(start + CHUNK_ROWS, num_rows))
        size = len(numbers)
        questions = [f"What do you get if you add {number} to {number // 7}?" for number in numbers.tolist()]
        columns = {
            "query_id": query_ids(numbers),
            "task": ["tiny_world"] * size,
            "split": ["train"] * size,
            "question": questions,
            "prompt": [f"Question: {question}\nAnswer: " for question in questions],
            "reference": ['{"answer": "yes"}'] * size,
        }
        table, path = pa.table(columns, schema=QUERIES), f"{queries.path}/{start:012}.parquet"
        pq.write_table(table, path, compression="zstd", filesystem=queries.filesystem)


def run_stages(root: str, s3: SlowS3 | None) -> Iterator[dict[str, Any]]:
    """The stages in this process, the driver. One row each: wall_s, the driver's peak memory, and what was asked of the S3."""
    use_stand_in()
    model = {"device": "cpu"}
    config = RunConfig.model_validate(
        {
            "root": root,
            "queries": {"tasks": {"tiny_world": {}}},
            "models": {key: {"path": f"quickstart/models/{key}", **model} for key in ("weak", "strong")},
            "sampling": {"num_samples": len(ANSWERS)},
            "ray": {"num_cpus": 8, "object_store_memory_gib": 1, "dashboard": False},
        }
    )
    # Once more at the end, when nothing is left to do: what a rerun costs that only asks what is done.
    stages: dict[str, Callable[..., Any]] = {
        "sample": run_sampling,
        "grade": run_grading,
        "label": run_labeling,
        "again": run_sampling,
    }
    with connected(config.ray):
        for name, stage in stages.items():
            before, started = s3.counts() if s3 else Counter(), time.perf_counter()
            with PeakMemory() as peak:
                stage(config, ArtifactStore(root))
            wall_s = time.perf_counter() - started
            row = {"stage": name, "wall_s": wall_s, "own_mib": peak.own_mib, "object_store_mib": peak.object_store_mib}
            yield row | {"requests": requests_since(before, s3.counts())} if s3 else row


def requests_since(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """By verb; `opens` and `files` are of the rows' own files, `other_opens` and `other_files` of the other Parquet files."""
    counts = {name: after[name] - before[name] for name in after}
    found = {verb: counts.get(verb, 0) for verb in ("GET", "HEAD", "LIST", "PUT", "DELETE")}
    for prefix, kind in (("", "data"), ("other_", "checkpoint")):
        found[f"{prefix}opens"] = counts.get(f"GET {kind}", 0) + counts.get(f"HEAD {kind}", 0)
        found[f"{prefix}files"] = counts.get(f"written {kind}", 0)
    return found


class PeakMemory(threading.Thread):
    """The most that this process had: of its own, with mapped files; and of the object store, which all processes share."""

    def __enter__(self) -> "PeakMemory":
        self.own_mib = self.object_store_mib = 0.0
        self._ended = threading.Event()
        self._read()
        self.start()
        return self

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self._read()

    def _read(self) -> None:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        anonymous, files, shared = (int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
        self.own_mib = max(self.own_mib, anonymous + files)
        self.object_store_mib = max(self.object_store_mib, shared)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


class RootKind(StrEnum):
    LOCAL = "local"
    S3 = "s3"


@contextmanager
def root_of(kind: RootKind, delay_ms: float) -> Iterator[tuple[str, SlowS3 | None]]:
    """An empty ROOT, and the S3 where it is one."""
    if kind is RootKind.S3:
        with running(delay_ms) as s3:
            yield s3.root, s3
    else:
        with tempfile.TemporaryDirectory(prefix="firewall-ray-bench-") as folder:
            yield folder, None


@app.command()
def rows(
    sizes: Annotated[list[int] | None, typer.Option("--size", min=1_000, help="Queries; repeatable.")] = None,
    root_kind: Annotated[RootKind, typer.Option(help="Where the rows lie.")] = RootKind.S3,
    delay_ms: Annotated[float, typer.Option(min=0, help="What each request to the S3 takes.")] = 50,
    plot: Annotated[str | None, typer.Option(help="PNG file to draw.")] = None,
    worker: Annotated[str | None, typer.Option("--run", hidden=True)] = None,
    port: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """The driver's time, memory and requests as the rows grow, with an engine of fixed speed."""
    if worker is not None:
        for row in run_stages(worker, SlowS3(port) if port else None):
            print(json.dumps(row), flush=True)
        return
    results: list[dict[str, Any]] = []
    columns = ("opens", "files", "other_opens", "other_files", "GET", "HEAD", "LIST", "PUT", "DELETE")
    heads = "".join(f" {name:>11}" for name in columns)
    print(f"{'rows':>10} {'stage':>7} {'wall s':>8} {'engine s':>9} {'driver MiB':>11} {'store MiB':>10}{heads}", flush=True)
    for size in sizes or [10_000, 100_000, 1_000_000]:
        with root_of(root_kind, delay_ms) as (root, s3):
            generate(ArtifactStore(root), size)
            command = [sys.executable, __file__, "rows", "--run", root, *(["--port", str(s3.port)] if s3 else [])]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    if not line.startswith("{"):  # what libraries print
                        continue
                    row = json.loads(line)
                    row |= {"rows": size, "engine_s": size / StandInEngine.rows_per_s if row["stage"] == "sample" else None}
                    results.append(row)
                    engine = f"{row['engine_s']:,.1f}" if row["engine_s"] else ""
                    requests = "".join(f" {row['requests'][name]:>11,}" for name in columns) if s3 else ""
                    print(
                        f"{size:>10,} {row['stage']:>7} {row['wall_s']:>8.1f} {engine:>9} {row['own_mib']:>11.0f} "
                        f"{row['object_store_mib']:>10.0f}{requests}",
                        flush=True,
                    )
            if process.returncode:
                raise SystemExit(process.returncode)
    if plot is not None:
        Path(plot).write_bytes(png(draw(results)))
    settings = {"root_kind": root_kind.value, "delay_ms": delay_ms if root_kind is RootKind.S3 else 0.0}
    print(json.dumps({"benchmark": "scaling_rows", **settings, "rows": results, "versions": versions()}))


def draw(results: list[dict[str, Any]]) -> Figure:
    """Two panels: seconds and the driver's MiB by rows, a line a stage; dotted is what it sees of the object store."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        time_axes, memory_axes = figure.subplots(1, 2)
        for colour, stage in zip(PALETTE, dict.fromkeys(row["stage"] for row in results), strict=False):
            mine = [row for row in results if row["stage"] == stage]
            sizes = [row["rows"] for row in mine]
            time_axes.plot(sizes, [row["wall_s"] for row in mine], marker="o", color=colour, label=stage)
            memory_axes.plot(sizes, [row["own_mib"] for row in mine], marker="o", color=colour)
            memory_axes.plot(sizes, [row["object_store_mib"] for row in mine], linestyle=":", color=colour)
        sampled = [row for row in results if row["engine_s"]]
        alone = {"linestyle": "--", "color": WEAK, "label": "sample: the engine alone"}
        time_axes.plot([row["rows"] for row in sampled], [row["engine_s"] for row in sampled], **alone)
        time_axes.set(xscale="log", yscale="log", xlabel="queries", ylabel="seconds", title="Time")
        memory_axes.set(xscale="log", xlabel="queries", ylabel="MiB", title="Driver's peak memory (dotted: Ray's object store)")
        memory_axes.set_ylim(bottom=0)
        for axis in (time_axes.xaxis, time_axes.yaxis, memory_axes.xaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:,.7g}"))
        figure.legend(loc="outside lower center", ncols=4)
        return figure


if __name__ == "__main__":
    app()
