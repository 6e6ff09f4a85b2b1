"""The firewall's endpoint against Ray's own endpoint of the same weak model: latency and requests/s, in one run and one Ray.

What bounds the firewall is the model that it routes to, served by `ray.serve.llm` alone: the same LLMConfig, requests and
Serve settings, without a router. Every request to the firewall is routed to the weak model because of its score. Closed
loops; the two are loaded in turn, round by round, never at once: two idle engines cost little, and what else the machine does
hits both alike. Targets: at most 8 ms more at the median of one client, at least 0.90 of the requests/s of sixteen.

    python benchmarks/serving.py --root ROOT
"""

import json
import os
import socket
import statistics
import urllib.request
from collections import defaultdict
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from cpu_time import cpu_seconds
from http_load import Load, Measured, ceiling, load_process, run_load
from rich.console import Console
from rich.table import Table
from serving_peers import peers

from firewall_ray.cluster.connect import connected
from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore
from serve_app import serve_settings

MAX_TOKENS = 8
NUM_QUESTIONS = 200
WARM_UP_S = 3.0
NUM_CPUS = 16  # logical, so that two applications find room on a small machine
FIREWALL, PLAIN = "firewall", "plain"


class Sample(NamedTuple):
    """A cell in a round. cpu_ms: CPU time a request, by process."""

    measured: Measured
    cpu_ms: dict[str, float]


class Cell(NamedTuple):
    """One line of the table."""

    endpoint: str
    concurrency: int
    streams: bool


def serve_both(config: RunConfig, port: int) -> None:
    """The firewall at /, the weak model alone at /plain: two applications behind one Serve."""
    from ray import serve
    from ray.serve.llm import build_openai_app

    from serve_app.app import compose
    from serve_app.models.deployment import llm_config

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(compose(config), name=FIREWALL, route_prefix="/")
    weak = config.models[config.pair.weak]
    assert isinstance(weak, VllmModelConfig)
    plain = build_openai_app({"llm_configs": [llm_config(config.pair.weak, weak, config.serving)]})
    serve.run(plain, name=PLAIN, route_prefix=f"/{PLAIN}")


def weak_questions(url: str, questions: list[str]) -> list[str]:
    """Those that the router, asked at `url`, sends to the weak model by their score."""
    weak = []
    for question in questions:
        body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
        request = urllib.request.Request(f"{url}/v1/route", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            decision = json.load(response)
        if (decision["route"], decision["reason"]) == ("weak", "score"):
            weak.append(question)
    return weak


def bodies(questions: list[str], model: str, *, streams: bool) -> list[bytes]:
    options: dict[str, Any] = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": streams}
    return [json.dumps({**options, "messages": [{"role": "user", "content": question}]}).encode() for question in questions]


def load_of(cell: Cell, urls: dict[str, str], questions: list[str], weak: str, duration_s: float) -> Load:
    """Of one cell. An answer of the firewall that no score decided counts as a failure."""
    model, expected = weak, {}
    if cell.endpoint == FIREWALL:
        model, expected = FIREWALL, {"x-firewall-route": "weak", "x-firewall-reason": "score"}
    return Load(
        f"{urls[cell.endpoint]}/v1/chat/completions",
        bodies(questions, model, streams=cell.streams),
        cell.concurrency,
        duration_s,
        expected,
    )


def compare(samples: dict[Cell, list[Sample]], concurrency: int, streams: bool) -> dict[str, float]:
    """Firewall against plain in the same round; the median over rounds."""
    cells = (Cell(endpoint, concurrency, streams) for endpoint in (FIREWALL, PLAIN))
    pairs = zip(*([sample.measured for sample in samples[cell]] for cell in cells), strict=True)
    each = [
        (
            float(np.median(ours.latencies_ms) - np.median(theirs.latencies_ms)),
            float(np.median(ours.first_byte_ms) - np.median(theirs.first_byte_ms)),
            ours.requests_per_s / theirs.requests_per_s,
        )
        for ours, theirs in pairs
    ]
    more_ms, first_ms, ratio = (statistics.median(column) for column in zip(*each, strict=True))
    ratios = sorted(ratio for _, _, ratio in each)
    ours_ms, theirs_ms = (
        statistics.median(sum(sample.cpu_ms.values()) for sample in samples[Cell(e, concurrency, streams)])
        for e in (FIREWALL, PLAIN)
    )
    return {
        "p50_more_ms": round(more_ms, 2),
        "first_byte_p50_more_ms": round(first_ms, 2),
        "requests_per_s_ratio": round(ratio, 3),
        "requests_per_s_ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "cpu_ms_more": round(ours_ms - theirs_ms, 2),
    }


def row(cell: Cell, samples: list[Sample]) -> dict[str, Any]:
    """All rounds of a cell together."""
    rounds = [sample.measured for sample in samples]
    processes = sorted({name for sample in samples for name in sample.cpu_ms})
    cpu_ms = {name: round(statistics.median(sample.cpu_ms.get(name, 0.0) for sample in samples), 2) for name in processes}
    latencies = np.concatenate([measured.latencies_ms for measured in rounds])
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
    return {
        **cell._asdict(),
        "num_requests": len(latencies),
        "num_failures": sum(measured.num_failures for measured in rounds),
        "p50_ms": round(float(p50), 2),
        "p90_ms": round(float(p90), 2),
        "p99_ms": round(float(p99), 2),
        "first_byte_p50_ms": round(float(np.median(np.concatenate([measured.first_byte_ms for measured in rounds]))), 2),
        "requests_per_s": round(statistics.median(measured.requests_per_s for measured in rounds), 1),
        "cpu_ms": round(sum(cpu_ms.values()), 2),
        "cpu_ms_by_process": {name: ms for name, ms in cpu_ms.items() if ms >= 0.05},
    }


def show(rows: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
    console = Console(width=132)
    table = Table(
        "endpoint", "clients", "answers", "requests", "failed", "p50 ms", "p90", "p99", "first byte", "requests/s", "CPU ms"
    )
    for each in rows:
        values = [each[name] for name in ("num_requests", "num_failures", "p50_ms", "p90_ms", "p99_ms", "first_byte_p50_ms")]
        kind = "streamed" if each["streams"] else "whole"
        table.add_row(each["endpoint"], *map(str, [each["concurrency"], kind, *values, each["requests_per_s"], each["cpu_ms"]]))
    console.print(table)
    for each in comparisons:
        kind = "streamed" if each["streams"] else "whole"
        low, high = each["requests_per_s_ratio_range"]
        console.print(
            f"{each['concurrency']:>2} clients, {kind}: p50 {each['p50_more_ms']:+.1f} ms, first byte "
            f"{each['first_byte_p50_more_ms']:+.1f} ms, CPU {each['cpu_ms_more']:+.1f} ms a request, requests/s "
            f"{each['requests_per_s_ratio']:.2f} of the plain endpoint's, {low:.2f} to {high:.2f} by round"
        )


def measure(executor: Executor, loads: dict[Cell, Load], num_rounds: int) -> dict[Cell, list[Sample]]:
    """Every cell in every round, after a warm-up of each."""
    for load in loads.values():
        executor.submit(run_load, replace(load, duration_s=WARM_UP_S)).result()
    samples: dict[Cell, list[Sample]] = defaultdict(list)
    for i in range(num_rounds):
        for cell in loads if i % 2 == 0 else reversed(loads):
            before = cpu_seconds()
            measured = executor.submit(run_load, loads[cell]).result()
            num_requests = max(1, len(measured.latencies_ms) + measured.num_failures)
            used = {name: 1e3 * (seconds - before.get(name, 0.0)) / num_requests for name, seconds in cpu_seconds().items()}
            samples[cell].append(Sample(measured, used))
        print(f"round {i + 1} of {num_rounds} done", flush=True)
    return samples


def main(
    root: Annotated[str | None, typer.Option(help="Of a finished run; the config's own when not given.")] = None,
    config: Annotated[str, typer.Option(help="Run configuration.")] = "jobs/configs/quickstart.yaml",
    concurrency: Annotated[list[int], typer.Option(help="Clients. Repeatable.")] = [1, 4, 16],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=0.5, help="Of a cell in a round.")] = 6.0,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    settings: Annotated[bool, typer.Option(help="The Serve settings of `make serve`, for both endpoints; else Ray's own.")] = True,
    alone: Annotated[bool, typer.Option(help="Also vLLM's own server alone.")] = False,
    litellm: Annotated[str | None, typer.Option(help="Also LiteLLM's proxy before that: its command.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON with every figure.")] = None,
) -> None:
    """Print p50, p90, p99, first byte, requests/s and failures of both endpoints, and how the firewall's compare."""
    if settings:
        serve_settings.apply()
    run_config = load_config(config, [f"ray.num_cpus={NUM_CPUS}"], root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    queries = ArtifactStore(run_config.root).queries().read(["query_id", "question", "split"]).to_pylist()
    key = run_config.pair.weak
    weak = run_config.models[key]
    assert isinstance(weak, VllmModelConfig)
    with load_process() as executor, connected(run_config.ray), ExitStack() as stack:
        serve_both(run_config, port)
        urls = {FIREWALL: url, PLAIN: f"{url}/{PLAIN}"}
        if alone or litellm is not None:
            urls |= stack.enter_context(peers(key, weak, litellm))
        questions = weak_questions(url, [query["question"] for query in queries if query["split"] == "test"][: 2 * NUM_QUESTIONS])
        print(f"up; {len(questions)} questions that the router sends to the weak model", flush=True)
        cells = [Cell(endpoint, clients, streams) for clients in concurrency for streams in (False, True) for endpoint in urls]
        loads = {cell: load_of(cell, urls, questions, key, seconds) for cell in cells}
        samples = measure(executor, loads, rounds)
        most = executor.submit(ceiling, max(concurrency), bodies(questions, FIREWALL, streams=False)[0], bytes(500)).result()
    rows = [row(cell, samples[cell]) for cell in cells]
    comparisons = [
        {"concurrency": clients, "streams": streams, **compare(samples, clients, streams)}
        for clients in concurrency
        for streams in (False, True)
    ]
    show(rows, comparisons)
    summary = {
        "benchmark": "serving",
        "comparisons": comparisons,
        "load_generator_requests_per_s": round(most),
        "rounds": rounds,
        "seconds": seconds,
        "max_tokens": MAX_TOKENS,
        "num_cpus": os.cpu_count(),
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith("RAY_SERVE_")},
        "versions": versions(),
    }
    if out is not None:
        out.write_text(json.dumps({**summary, "rows": rows}, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    typer.run(main)
