"""Limits of keys in Ray Serve for real: two ingress replicas, bought models, and the shared replica killed and deployed anew."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai_server import MODEL, USAGE, openai_server
from running_app import Served, wait_until
from servable_run import models_elsewhere, write_run

from serve_app.api_keys import make_key

pytestmark = pytest.mark.slow

KEY, HOLDER = make_key("ann")
REQUESTS_PER_MINUTE = 20
LIMITED_KEY, LIMITED = make_key("bob", requests_per_minute=REQUESTS_PER_MINUTE)
# A token of a prompt costs a cent.
PRICE = {"prompt": 1e4, "completion": 0}
USD = USAGE["prompt_tokens"] / 100
CAP_USD = 10 * USD


@pytest.fixture
def deploy(served: Served, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Deploys the application, and says where it is."""
    from ray import serve

    from serve_app.app import build_app

    config_path = Path(write_run(tmp_path))
    raw = yaml.safe_load(config_path.read_text())
    with openai_server() as server:
        raw["models"] = models_elsewhere(server.url, model=MODEL)
        raw["serving"] |= {
            "other_models": "warn",
            "ingress_replicas": {"min": 2, "max": 2},
            "api_keys": [HOLDER.model_dump(), LIMITED.model_dump()],
            "prices": {"weak": PRICE, "strong": PRICE},
            "spend_caps": {"per_key": {"month": CAP_USD}},
        }
        config_path.write_text(yaml.safe_dump(raw))

        def run() -> str:
            serve.run(build_app({"config": str(config_path)}), name="spending", route_prefix="/spending")
            return f"{served.url}/spending"

        yield run
        serve.delete("spending")


def ask(url: str, *, stream: bool = False) -> httpx.Response:
    """Over a connection of its own, so that the proxy chooses a replica anew. A 503 is tried again."""
    body = {"model": "firewall", "messages": [{"role": "user", "content": "Why?"}], "stream": stream}
    headers = {"authorization": f"Bearer {KEY}"}

    def answer() -> Any:
        response = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        return response if response.status_code != 503 else None

    return wait_until(answer, "the server knows what was spent", 60)


def shared_actors() -> set[str]:
    import ray

    return {each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if "spending#Shared#" in each["name"]}


def test_a_spend_cap_holds_over_ingress_replicas_a_killed_shared_replica_and_another_deployment(deploy: Callable[[], str]) -> None:
    import ray
    from ray import serve

    url = deploy()
    answers = [ask(url, stream=i % 3 == 0) for i in range(14)]
    statuses = [each.status_code for each in answers]
    # One at a time; but the end of a stream may be told after the next has begun.
    assert statuses in ([200] * num + [429] * (14 - num) for num in (10, 11))
    whole = next(each for each in answers if each.headers["content-type"] == "application/json")
    assert float(whole.headers["x-firewall-cost-usd"]) == pytest.approx(USD)
    refused = answers[-1]
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "spend_cap_reached")
    assert "serving.spend_caps.per_key.month" in refused.json()["error"]["message"]
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 86_400

    (killed,) = shared_actors()
    ray.kill(ray.get_actor(killed, namespace="serve"))
    assert {ask(url).status_code for _ in range(4)} == {429}
    serve.delete("spending")  # whether there is another one or not
    url = deploy()
    assert {ask(url).status_code for _ in range(4)} == {429}


def test_a_limit_a_minute_holds_over_ingress_replicas(deploy: Callable[[], str]) -> None:
    url = deploy()
    headers = {"authorization": f"Bearer {LIMITED_KEY}"}

    def ask_route(_: int) -> httpx.Response:
        return httpx.post(f"{url}/v1/route", json={"model": "firewall", "prompt": "Why?"}, headers=headers, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(ask_route, range(REQUESTS_PER_MINUTE + 20)))
    assert sorted(each.status_code for each in responses) == [200] * REQUESTS_PER_MINUTE + [429] * 20
    refused = next(each for each in responses if each.status_code == 429)
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-limit-requests"] == str(REQUESTS_PER_MINUTE)
