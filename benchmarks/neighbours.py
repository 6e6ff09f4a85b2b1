"""Small requests beside a neighbour who asks for a lot: what it costs them, and whether any of them is decided by a time-out.

What bounds them is themselves: the same small chats, in the same run, without a neighbour. The neighbours are one client that sends
chats of 1 MiB, and one that has 2,048 prompts decided at a time, each in a closed loop. Rounds of all three in turn. Target: p99 at
most twice what it is alone, and none that no score decided.

    python benchmarks/neighbours.py --config CONFIG
"""

import json
import os
import socket
from collections import defaultdict
from typing import Annotated, Any

import numpy as np
import typer
from http_load import Load, Measured, load_process, run_load

from firewall_ray.cluster.connect import connected
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore
from serve_app import serve_settings

NUM_SMALL = 200
NUM_PROMPTS = 2_048
MIB = 2**20
LEAD_S = 1.0  # of a neighbour, before the small requests begin


def bodies(config: RunConfig) -> tuple[list[bytes], bytes, bytes]:
    """Small chats, a chat of 1 MiB, and 2,048 prompts."""
    queries = ArtifactStore(config.root).queries().read(["question", "prompt", "split"]).to_pylist()
    questions = [query["question"] for query in queries if query["split"] == "test"]

    def chat(text: str) -> bytes:
        return json.dumps({"model": "firewall", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}).encode()

    prompts = [query["prompt"] for query in queries]
    many = (prompts * (NUM_PROMPTS // len(prompts) + 1))[:NUM_PROMPTS]
    long = (" ".join(questions) + " ") * (MIB // 1_000)
    return [chat(each) for each in questions[:NUM_SMALL]], chat(long[:MIB]), json.dumps({"prompt": many}).encode()


def show(name: str, rounds: list[Measured], alone_p99: float | None) -> dict[str, Any]:
    latencies = np.concatenate([each.latencies_ms for each in rounds])
    p50, p99 = (float(each) for each in np.percentile(latencies, [50, 99]))
    failed = sum(each.num_failures for each in rounds)
    times = "" if alone_p99 is None else f", {p99 / alone_p99:.2f} times"
    print(
        f"{name:>20}: {len(latencies):>6,} small chats, p50 {p50:.0f} ms, p99 {p99:.0f} ms{times}; not by a score: {failed}",
        flush=True,
    )
    return {"beside": name, "requests": len(latencies), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "not_by_score": failed}


def main(
    config: Annotated[str, typer.Option(help="Run configuration of a finished run.")] = "jobs/configs/quickstart.yaml",
    root: Annotated[str | None, typer.Option(help="Of a finished run; the config's own when not given.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="That send small chats.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="Of each of the three in a round.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Print p50 and p99 of small chats alone and beside each neighbour, then one JSON line."""
    serve_settings.apply()
    run_config = load_config(config, [], root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    small, long, many = bodies(run_config)
    chats, route = f"http://127.0.0.1:{port}/v1/chat/completions", f"http://127.0.0.1:{port}/v1/route"
    load = Load(chats, small, clients, seconds, {"x-firewall-reason": "score"})
    neighbours = {
        "nobody": None,
        "one 1 MiB chat": Load(chats, [long], 1, seconds + 2 * LEAD_S),
        "2,048 prompts": Load(route, [many], 1, seconds + 2 * LEAD_S),
    }
    measured: dict[str, list[Measured]] = defaultdict(list)
    answered: dict[str, int] = defaultdict(int)
    with load_process() as executor, load_process() as beside, connected(run_config.ray):
        from ray import serve

        from serve_app.app import compose

        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(compose(run_config), name="firewall", route_prefix="/")
        executor.submit(run_load, load).result()  # warm
        for _ in range(rounds):
            for name, neighbour in neighbours.items():
                busy = None if neighbour is None else beside.submit(run_load, neighbour)
                executor.submit(run_load, Load(chats, small[:1], 1, LEAD_S)).result()
                measured[name].append(executor.submit(run_load, load).result())
                if busy is not None:
                    its = busy.result()
                    answered[name] += (
                        len(its.latencies_ms) + its.num_failures
                    )  # a chat of 1 MiB is more than the model takes: a 400
        serve.shutdown()
    alone = float(np.percentile(np.concatenate([each.latencies_ms for each in measured["nobody"]]), 99))
    rows = [show(name, each, None if name == "nobody" else alone) for name, each in measured.items()]
    rest = {"answered_of_neighbours": answered, "clients": clients, "num_cpus": os.cpu_count(), "versions": versions()}
    print(json.dumps({"benchmark": "neighbours", "rows": rows, **rest}))


if __name__ == "__main__":
    typer.run(main)
