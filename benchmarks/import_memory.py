"""What memory and time does jobs/import_outcomes.py take, and does memory stay flat?

Measured: `run_import` of a generated file (two models, one verdict each a query; questions of about 250 characters), in a process
of its own for each size: its peak resident memory beyond what the imports alone hold, and seconds. The file is a CSV with a row an
answer, or with --wide JSON Lines with a row a query. Bound: reading the same rows and checking them, with nothing kept.

    python benchmarks/import_memory.py
    python benchmarks/import_memory.py --wide
    python benchmarks/import_memory.py --num-queries 100000 --num-queries 1000000
"""

import csv
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

from firewall_ray.config.run import RunConfig
from firewall_ray.stages.import_outcomes import run_import
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.outcome_rows import read_outcomes

WORDS = 40  # About 250 characters a question, as in GSM8K.


def question(rng: random.Random, number: int) -> str:
    return f"{number} " + " ".join(f"word{rng.randrange(500):03}" for _ in range(WORDS - 1))


def generate(path: Path, num_queries: int, seed: int) -> None:
    """Both models' rows of a question lie as far apart as a file can have them: all of weak's come before strong's."""
    if path.suffix == ".jsonl":
        rng = random.Random(seed)
        with path.open("w") as file:
            for number in range(num_queries):
                scores = {model: rng.randrange(2) for model in ("weak", "strong")}
                file.write(json.dumps({"query": question(rng, number), "scores": scores}) + "\n")
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "model", "correct"])
        for model in ("weak", "strong"):
            rng = random.Random(seed)
            for number in range(num_queries):
                writer.writerow([question(rng, number), model, rng.randrange(2)])


def config_for(path: Path) -> RunConfig:
    models = {key: {"path": "-"} for key in ("weak", "strong")}
    outcomes = {"path": str(path), "columns": {"verdicts": "scores"} if path.suffix == ".jsonl" else {}}
    return RunConfig.model_validate({"root": f"{path}.root", "queries": {"outcomes": outcomes}, "models": models})


def measure(path: Path, kind: str, sender: Connection) -> None:
    """Runs in a fresh process: a peak cannot be taken back."""
    config = config_for(path)
    before, started = peak_mib(), time.perf_counter()
    if kind == "import":
        run_import(config, ArtifactStore(config.root), force=True)
    else:
        outcomes = config.queries.outcomes
        assert outcomes is not None
        deque(read_outcomes(path, outcomes, set(config.models)), maxlen=0)
    sender.send({"mib": round(peak_mib() - before, 1), "s": round(time.perf_counter() - started, 1)})


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(path: Path, kind: str) -> dict[str, Any]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(path, kind, sender))
    process.start()
    found: dict[str, Any] = receiver.recv()
    process.join()
    return found


def main(
    num_queries: Annotated[list[int], typer.Option(help="Of each file; repeatable.")] = [100_000, 300_000],  # noqa: B006
    wide: Annotated[bool, typer.Option("--wide", help="A row a query, with the verdicts of both models.")] = False,
    seed: int = 0,
) -> None:
    """Print a row a size, then one JSON line."""
    rows = []
    print(f"{'queries':>10}  {'import MiB':>10}  {'s':>7}  {'reading MiB':>11}  {'s':>7}")
    for number in num_queries:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("outcomes.jsonl" if wide else "outcomes.csv")
            generate(path, number, seed)
            imported, read = in_own_process(path, "import"), in_own_process(path, "read")
        rows.append({"num_queries": number, "import": imported, "read": read})
        print(f"{number:>10,}  {imported['mib']:>10}  {imported['s']:>7}  {read['mib']:>11}  {read['s']:>7}", flush=True)
    print(json.dumps({"wide": wide, "rows": rows}))


if __name__ == "__main__":
    typer.run(main)
