"""Four ingress replicas for real, models bought elsewhere: what must hold over all of them together."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from openai_server import MODEL, openai_server
from running_app import Served
from servable_run import models_elsewhere, write_run

pytestmark = pytest.mark.slow

NUM_REPLICAS = 4
NUM_CONVERSATIONS = 150
NUM_TURNS = 4


@pytest.fixture(scope="module")
def url(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve

    from serve_app.app import build_app

    config_path = Path(write_run(tmp_path_factory.mktemp("several")))
    raw = yaml.safe_load(config_path.read_text())
    with openai_server() as server:
        raw["models"] = models_elsewhere(server.url, model=MODEL)
        raw["serving"] |= {
            "other_models": "warn",
            "sticky": True,
            # The threshold follows what was spent, so a turn that is decided anew is often decided otherwise.
            "budget_control": {"window": 200},
            "strong_fraction": 0.5,
            "ingress_replicas": {"min": NUM_REPLICAS, "max": NUM_REPLICAS},
        }
        config_path.write_text(yaml.safe_dump(raw))
        serve.run(build_app({"config": str(config_path)}), name="several", route_prefix="/several")
        yield f"{served.url}/several"
        serve.delete("several")


def test_no_conversation_sees_both_models(url: str, served: Served) -> None:
    """Their turns in a random order over all replicas; the router decides about half of them either way."""
    questions = [f"{prompt} ({i})" for i, prompt in enumerate((served.test_prompts * NUM_CONVERSATIONS)[:NUM_CONVERSATIONS])]
    seen: dict[str, set[tuple[str, str]]] = {question: set() for question in questions}

    def ask(question: str, num_turns: int) -> tuple[str, str]:
        said = [{"role": "user", "content": question}]
        for _ in range(num_turns):
            said += [{"role": "assistant", "content": "So."}, {"role": "user", "content": "Go on."}]
        # A connection of its own, so that the proxy chooses a replica anew.
        response = httpx.post(f"{url}/v1/chat/completions", json={"model": "firewall", "messages": said}, timeout=120)
        assert response.status_code == 200, response.text
        return response.headers["x-firewall-route"], response.headers["x-firewall-reason"]

    with ThreadPoolExecutor(16) as pool:
        for num_turns in range(NUM_TURNS):
            order = random.Random(num_turns).sample(questions, len(questions))
            for question, answer in zip(order, pool.map(lambda each, n=num_turns: ask(each, n), order), strict=True):
                seen[question].add(answer)

    stats = {httpx.get(f"{url}/stats", timeout=60).json()["replica"] for _ in range(40)}
    assert len(stats) > 1  # else nothing was tested
    # After a router that gave no answer in time the next turn asks it again, so it must have given one.
    assert {reason for answers in seen.values() for _, reason in answers} == {"score", "sticky"}
    assert {len({route for route, _ in answers}) for answers in seen.values()} == {1}
    assert {route for answers in seen.values() for route, _ in answers} == {"weak", "strong"}
