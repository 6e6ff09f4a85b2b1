"""The whole application for real, and the processes that it consists of: two vLLM engines, router and ingress in one Ray Serve."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from ray_head import free_port
from servable_run import ROUTER, prompts_of_split, write_run

from firewall_ray.config.run import load_config
from firewall_ray.policy import Threshold
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.store.layout import ArtifactStore


@dataclass
class Served:
    """The running application and what is needed to say offline what it should decide."""

    url: str
    client: openai.OpenAI
    predictor: RouterPredictor
    test_prompts: list[str]
    log_folder: Path

    def threshold(self, strong_fraction: float) -> Threshold:
        return self.predictor.card.quantiles.threshold(strong_fraction)

    def route(self, **body: Any) -> Any:
        return httpx.post(f"{self.url}/v1/route", json=body, timeout=60).raise_for_status().json()

    def is_ready(self) -> bool:
        """Router and both models answer."""
        return httpx.get(f"{self.url}/ready", timeout=60).status_code == 200


def run_application(folder: Path) -> Iterator[Served]:
    """Start it in the Ray that runs, on a free port; shut it down when the generator goes on."""
    import ray
    from ray import serve

    from serve_app.app import build_app

    config_path = write_run(folder)
    store = ArtifactStore(load_config(config_path).root)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app({"config": config_path}), name="firewall", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    predictor = RouterPredictor(store.router(ROUTER).path, num_threads=1)
    yield Served(url, client, predictor, prompts_of_split(store, "test"), logs)
    serve.shutdown()


def processes_of(deployment: str) -> list[psutil.Process]:
    """Of the replicas of `deployment`: Ingress, Router, or LLMServer:weak and LLMServer:strong."""
    title = f"ServeReplica:firewall:{deployment}"
    return [process for process in psutil.Process().children(recursive=True) if title in " ".join(_command_line(process))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has gone since it was listed
        return []


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 400) -> Any:
    """The condition's first result that is true. Fails after timeout_s, which is ample."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain until {what}"
        time.sleep(0.2)
    return result


def num_ongoing(deployment: str) -> int:
    """Requests that the one replica of `deployment` works on, as Serve counts them."""
    import ray

    (name,) = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if f"#{deployment}#" in each["name"]]
    return int(ray.get(ray.get_actor(name, namespace="serve").get_num_ongoing_requests.remote()))
