"""An hour's worth of requests through one ingress replica whose models die again and again: is its memory flat, its log alive?

The ingress is the real one, with everything that it records; router and models are stand-ins, so that it is the ingress that works.
What bounds memory is what the ingress holds by design (windows of counters, rows of the decision log until they are written): it
grows to that and stays. Every `--deaths`-th part of the run, a replica of a model is killed, in turn.

    python benchmarks/soak.py --requests 100000
"""

import json
import os
import re
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from http_load import Load, load_process, run_load
from ray import serve

from firewall_ray.config.run import RayConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id
from serve_app import serve_settings
from serve_app.models.answers import Endpoint, StreamPart, Usage, WholeAnswer
from serve_app.routing.decision import Decision, DecisionRequest

ANSWER = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "So."}}]}).encode()
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
NUM_TEXTS = 50_000  # so many questions, each of which comes twice: nothing that is kept by question is missed


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1_000)
class StubRouter:
    """Half and half, by the question."""

    async def decide_all(self, requests: list[DecisionRequest], spent: Any) -> list[list[Decision]]:
        return [[self._decision(text) for text in request.texts] for request in requests]

    def _decision(self, text: str) -> Decision:
        identity = prompt_id(text)
        score = int(identity[-4:], 16) / 2**16
        route = "strong" if score < 0.5 else "weak"
        return Decision(route, "score", score, 0.5, "stub", False, 0.5, query_id=identity)  # type: ignore[arg-type]


class StubModel:
    """As `ModelServer` is called, without an engine."""

    async def answer(self, endpoint: Endpoint, body: bytes) -> WholeAnswer:
        return WholeAnswer(200, ANSWER, Usage(5, 1), 0.001)

    async def stream(self, endpoint: Endpoint, body: bytes) -> Any:
        yield StreamPart(b"data: {}\n\n", model_s=0.001)
        yield StreamPart(b"data: [DONE]\n\n", usage=Usage(5, 1))

    async def check_health(self) -> None:
        """Also asked by the ingress."""

    async def problem(self) -> str | None:
        return None

    async def decode(self, prompts: list[list[int]]) -> list[str]:
        return ["" for _ in prompts]


def application(root: str) -> Any:
    from serve_app.http.ingress import Ingress

    store = ArtifactStore(root)
    models = {
        route: serve.deployment(StubModel, name=route, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1_000).bind()
        for route in ("weak", "strong")
    }
    return serve.deployment(
        serve.ingress()(Ingress), name="Ingress", ray_actor_options={"num_cpus": 1}, max_ongoing_requests=1_000
    ).bind(
        router=StubRouter.bind(),
        ids={"weak": "small", "strong": "large"},
        models=models,
        serving=ServingConfig.model_validate({"api_keys": "disabled", "sticky": True, "decision_log": {"seconds_per_file": 30}}),
        decisions=store.decisions(),
        spending=store.spending(),
    )


def ingress_process() -> psutil.Process:
    found = [p for p in psutil.Process().children(recursive=True) if "ServeReplica:soak:Ingress" in " ".join(p.cmdline())]
    return found[0]


def kill(model: str) -> None:
    """A replica of `model`, if there is one just now."""
    import ray

    for each in ray.util.list_named_actors(all_namespaces=True):
        if f"soak#{model}#" in each["name"]:
            ray.kill(ray.get_actor(each["name"], namespace="serve"), no_restart=True)


def log_lines(session: Path) -> list[str]:
    return [line for path in session.glob("logs/serve/replica_soak_Ingress_*.log") for line in path.read_text().splitlines()]


def main(
    requests: Annotated[int, typer.Option(min=1_000)] = 100_000,
    clients: Annotated[int, typer.Option(min=1)] = 16,
    deaths: Annotated[int, typer.Option(min=0, help="Of a model's replica, spread over the run.")] = 20,
) -> None:
    """Print memory and failures a twentieth of the requests at a time, then one JSON line."""
    serve_settings.apply()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    from firewall_ray.cluster.connect import connected

    def chat(i: int) -> bytes:
        return json.dumps(
            {"model": "firewall", "stream": i % 3 == 0, "messages": [{"role": "user", "content": f"question {i}"}]}
        ).encode()

    bodies = [chat(i) for i in range(NUM_TEXTS)]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root, load_process() as executor, connected(RayConfig(num_cpus=8, dashboard=False)):
        import ray

        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(root), name="soak", route_prefix="/")
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        process = ingress_process()
        done = failed = killed = at = 0
        with ThreadPoolExecutor(1) as killer:
            while done < requests:
                part = bodies[at:] + bodies[:at]
                load = executor.submit(run_load, Load(url, part, clients, 10.0))
                if killed < deaths * done / requests:
                    killer.submit(lambda n=killed: (time.sleep(3), kill(("weak", "strong")[n % 2])))
                    killed += 1
                measured = load.result()
                num = len(measured.latencies_ms) + measured.num_failures
                done, failed, at = done + num, failed + measured.num_failures, (at + num) % NUM_TEXTS
                rows.append(
                    {"requests": done, "failed": failed, "killed": killed, "rss_mib": round(process.memory_info().rss / 2**20, 1)}
                )
                print(f"{done:>8,} requests, {failed} failed, {killed} deaths, ingress {rows[-1]['rss_mib']} MiB", flush=True)
        ended, lines = datetime.now(), log_lines(session)
        serve.shutdown()
        written = ArtifactStore(root).decisions().read(["status"]).num_rows
    stamps = [datetime.strptime(found.group(), "%Y-%m-%d %H:%M:%S") for line in lines if (found := STAMP.search(line))]
    print(
        json.dumps(
            {
                "benchmark": "soak",
                "rows": rows,
                "decision_rows": written,
                "log_lines": len(lines),
                "last_line_s_before_the_end": (ended - max(stamps)).total_seconds(),
                "elapsed_s": round(time.monotonic() - began),
                "num_cpus": os.cpu_count(),
                "versions": versions(),
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
