"""The application's replicas on groups of nodes, and the strong model's node killed while clients ask.

Router, ingress, and everything that decides and falls back are real; only the two models have no engine.
"""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import pytest
import yaml
from light_models import deploy
from ray_head import free_port
from ray_nodes import RayNodes, ray_nodes, wait_for
from servable_run import write_run

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    with ray_nodes() as nodes:
        yield nodes


def write_config(folder: Path) -> str:
    """The servable run with two weak replicas and a strong one, each model on its nodes; half of the traffic goes strong."""
    path = Path(write_run(folder))
    raw = yaml.safe_load(path.read_text())
    raw["models"]["weak"] |= {"node_resource": "small", "replicas": {"min": 2, "max": 2}}
    raw["models"]["strong"] |= {"node_resource": "large"}
    path.write_text(yaml.safe_dump(raw))
    return str(path)


@dataclass
class Load:
    """Four clients, each with one request at a time, half of which stream: `firewall-0.5`, another text each."""

    url: str
    outcomes: list[tuple[int, str | None, str | None]] = field(default_factory=list)  # status, route, fallback
    num_broken: int = 0  # streams that ended in an error, after their first byte
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(4)
        self._clients = [self._pool.submit(self._ask_on, number) for number in range(4)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for client in self._clients:
            client.result()
        self._pool.shutdown()

    def wait_for(self, count: int, what: str, **expected: str | None) -> None:
        """Until `count` more outcomes have the route and fallback expected."""
        start = len(self.outcomes)

        def enough() -> bool:
            new = [{"route": route, "fallback": fallback} for _, route, fallback in self.outcomes[start:]]
            return sum(expected.items() <= each.items() for each in new) >= count

        wait_for(enough, what)

    def _ask_on(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            for i in range(1_000_000):
                if self._over.is_set():
                    return
                body = {"model": "firewall-0.5", "prompt": f"Client {number} asks {i}", "stream": number % 2 == 0}
                response = client.post("/v1/completions", json=body)
                said = response.text.splitlines()[0].removeprefix("data: ") if body["stream"] else response.json()["model"]
                route = response.headers.get("x-firewall-route")
                assert said == route, "the headers name the model that answered"
                self.num_broken += body["stream"] and "[DONE]" not in response.text
                self.outcomes.append((response.status_code, route, response.headers.get("x-firewall-fallback")))
                time.sleep(0.05)


def test_the_strong_models_node_killed_under_traffic_costs_no_answer(nodes: RayNodes, tmp_path: Path) -> None:
    nodes.add(num_cpus=2)  # for router and ingress, and no room for a model
    port, url = free_port(), ""
    with ThreadPoolExecutor(1) as driver:
        deployed = driver.submit(nodes.in_driver, deploy, write_config(tmp_path), port)

        def alive(part: str) -> list[str]:
            """Nodes of the replicas of a deployment."""
            assert not (deployed.done() and deployed.exception()), deployed.exception()
            replicas = nodes.actors("ServeReplica:firewall:" + part)
            return [replica.node_id for replica in replicas if replica.state == "ALIVE"]

        wait_for(lambda: alive("Router") and alive("Ingress"), "router and ingress run")
        small = [nodes.add(num_cpus=2, small=1) for _ in range(2)]
        large = nodes.add(num_cpus=2, large=1)
        deployed.result()
    assert sorted(alive("ModelServer:weak")) == sorted(node.node_id for node in small)
    assert alive("ModelServer:strong") == [large.node_id]

    url = f"http://127.0.0.1:{port}"
    with Load(url) as load:
        load.wait_for(5, "the strong model answers", route="strong")
        nodes.kill(large)
        load.wait_for(20, "the weak model answers for it", route="weak", fallback="dead")
        assert alive("ModelServer:strong") == []
        another = nodes.add(num_cpus=2, large=1)
        load.wait_for(5, "the strong model answers again", route="strong")
        assert alive("ModelServer:strong") == [another.node_id]

        nodes.kill(small[0])
        wait_for(lambda: alive("ModelServer:weak") == [small[1].node_id], "its death is known")
        load.wait_for(20, "the weak model's other replica goes on", route="weak", fallback=None)
    assert {status for status, _, _ in load.outcomes} == {200}
    assert load.num_broken <= 2 * 2  # two deaths, two clients that stream: what has begun cannot be answered by another model
    assert {fallback for _, _, fallback in load.outcomes} <= {None, "dead", "timeout", "failed"}
    assert json.loads(httpx.get(f"{url}/health").text) == {"status": "ok"}
