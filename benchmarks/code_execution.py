"""How fast are generated programs executed in isolation, and are the verdicts the official ones?

Measured: executions/s of the 16,400 CodeGen-16B samples of CodeT on HumanEval, each row executed, in sandboxes that run side
by side; and the share of rows whose verdict is the one that HumanEval's own checker gave. Bound, in the same run on a sample of
the same programs: one bare fork a program, with no isolation, no limits and no report. Peer: a fresh interpreter a program,
which is what a sandbox without a fork server would cost at the least.

    python benchmarks/code_execution.py                   # all rows, about 7 minutes at 40/s
    python benchmarks/code_execution.py --num-rows 1000
"""

import gzip
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import typer

from firewall_ray.sandbox.program import PASSED, TIMED_OUT, Limits
from firewall_ray.sandbox.sandbox import Sandbox
from firewall_ray.tasks.humaneval import build_program

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NUM_BOUND_PROGRAMS = 400
NUM_SHOWN = 20
_BARE = """
import json, os, resource, sys, time
sys.path.insert(0, sys.argv[1])
from firewall_ray.sandbox.program import execute
programs = json.load(sys.stdin)
started = time.perf_counter()
for program in programs:
    pid = os.fork()
    if pid == 0:
        execute(program)
        os._exit(0)
    os.waitpid(pid, 0)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - started, usage.ru_utime + usage.ru_stime]))
"""


def read_rows(data: Path, num_rows: int | None, seed: int) -> list[dict[str, Any]]:
    """Rows of the outcomes file with the `program` of each; a seeded sample of them with `num_rows`."""
    with gzip.open(data / "HumanEval.jsonl.gz", "rt") as lines:
        problems = {row["task_id"]: row for row in map(json.loads, lines)}
    columns = ["query_id", "sample_index", "response", "correct", "outcome"]
    rows = pq.read_table(data / "outcomes" / "codet_humaneval_codegen16b.parquet", columns=columns).to_pylist()
    random.Random(seed).shuffle(rows)
    return [{**row, "program": build_program(row["response"], problems[row["query_id"]])} for row in rows[:num_rows]]


def run_isolated(programs: Sequence[str], num_workers: int) -> tuple[list[str], float, float]:
    """Outcomes, and the seconds and CPU seconds that they took with `num_workers` sandboxes; their start is not timed."""
    cpu = cpu_of_children()
    sandboxes = [Sandbox(Limits(), "required") for _ in range(num_workers)]
    try:
        for sandbox in sandboxes:
            sandbox.run("")
        outcomes = [""] * len(programs)
        numbers = iter(range(len(programs)))

        def work(sandbox: Sandbox) -> None:
            for number in numbers:  # shared: each thread takes the next program
                outcomes[number] = sandbox.run(programs[number])

        started = time.perf_counter()
        with ThreadPoolExecutor(num_workers) as threads:
            list(threads.map(work, sandboxes))
        seconds = time.perf_counter() - started
    finally:
        for sandbox in sandboxes:
            sandbox.close()
    return outcomes, seconds, cpu_of_children() - cpu


def bare_forks(programs: Sequence[str]) -> tuple[float, float]:
    """The bound: seconds, and CPU seconds, to fork, execute and wait from a small Python, program after program."""
    bare = [sys.executable, "-P", "-s", "-S", "-c", _BARE, str(Path(__file__).resolve().parents[1])]
    done = subprocess.run(bare, input=json.dumps(programs), text=True, capture_output=True, check=True)
    seconds, cpu_s = json.loads(done.stdout)
    return seconds, cpu_s


def fresh_interpreters(programs: Sequence[str]) -> tuple[float, float]:
    """The peer: seconds, and CPU seconds, to start a Python for each program."""
    started, cpu = time.perf_counter(), cpu_of_children()
    for program in programs:
        subprocess.run([sys.executable, "-I", "-S", "-"], input=program, text=True, capture_output=True, check=False)
    return time.perf_counter() - started, cpu_of_children() - cpu


def cpu_of_children() -> float:
    """CPU seconds of all processes that this one waited for, and that those waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(
    data: Annotated[Path, typer.Option(help="Folder with HumanEval.jsonl.gz and outcomes/codet_humaneval_codegen16b.parquet.")] = (
        SHARED_DATA
    ),
    num_rows: Annotated[int | None, typer.Option(min=1, help="A seeded sample of so many rows. Default: all 16,400.")] = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Sandboxes side by side: the cores to use.")] = 2,
    seed: Annotated[int, typer.Option(help="Shuffles the rows.")] = 0,
) -> None:
    """Print agreement with the official verdicts, executions/s, and their ratio to bare forks; JSON last."""
    rows = read_rows(data, num_rows, seed)
    programs = [row["program"] for row in rows]
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} CPUs, {num_workers} sandboxes")
    outcomes, seconds, cpu_s = run_isolated(programs, num_workers)
    different = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if bool(row["correct"]) != (outcome == PASSED)]
    for row, outcome in different[:NUM_SHOWN]:
        print(f"  {row['query_id']} sample {row['sample_index']}: officially {row['outcome']!r:.40}, here {outcome!r:.60}")
    agreement, rate = 1 - len(different) / len(rows), len(rows) / seconds
    print(f"{len(rows):,} executions in {seconds:.1f} s: {rate:.1f}/s, {outcomes.count(TIMED_OUT)} timed out")
    print(f"agreement {agreement:.4%}, {len(different)} rows differ")

    ending = [row["program"] for row in rows if row["outcome"] != TIMED_OUT][:NUM_BOUND_PROGRAMS]
    ways = {
        "sandbox": run_isolated(ending, 1)[1:],
        "bare fork (bound)": bare_forks(ending),
        "fresh interpreter (peer)": fresh_interpreters(ending),
    }
    print(f"the same {len(ending):,} programs, one after the other:")
    for way, (wall, cpu) in ways.items():
        print(f"  {way:<26} {len(ending) / wall:>8.1f}/s  {cpu / len(ending) * 1000:>7.2f} CPU ms each")
    figures = {"rows": len(rows), "seconds": seconds, "executions_per_s": rate, "agreement": agreement, "differ": len(different)}
    walls = [wall for wall, _ in ways.values()]
    ratios = {"of_bound": walls[1] / walls[0], "of_peer": walls[2] / walls[0]}
    cpu_ms = {way: 1000 * cpu / len(ending) for way, (_, cpu) in ways.items()}
    print(json.dumps({"benchmark": "code_execution", **figures, "cpu_s": cpu_s, **ratios, "cpu_ms": cpu_ms}))


if __name__ == "__main__":
    typer.run(main)
