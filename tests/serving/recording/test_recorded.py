"""What a running application leaves for the operator: metrics where Prometheus scrapes them, and the decision log's last rows."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from running_app import Served, free_port, wait_until

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id
from serve_app.routing.decision import Decision, DecisionRequest

pytestmark = pytest.mark.slow

Sample = tuple[str, dict[str, str], float]


def exported() -> list[Sample]:
    """All samples of this node's metrics agent, in Prometheus' text format."""
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    (node,) = ray.nodes()
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30).text
    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]


def sums(samples: list[Sample], name: str, replica: str, *tags: str) -> dict[Any, float]:
    """Of one replica, by the values of these tags; of histograms name the part, such as _count."""
    found: dict[Any, float] = {}
    for sample, labels, value in samples:
        if sample == name and labels["replica"] == replica:
            key = tuple(labels[tag] for tag in tags)
            found[key] = found.get(key, 0) + value
    return found


def test_the_metrics_reach_prometheus_with_the_values_of_known_requests(served: Served) -> None:
    """Counters never lose anything, so what is exported comes to agree with /stats, and that moved by what was asked."""

    def stats() -> Any:
        return httpx.get(f"{served.url}/stats").raise_for_status().json()

    before = stats()
    prompts = served.test_prompts[:6]
    for prompt in prompts[:4]:
        served.client.completions.create(model="firewall-0.0001", prompt=prompt, max_tokens=3)
    for prompt in prompts[4:]:
        stream = served.client.completions.create(model="firewall-0.9999", prompt=prompt, max_tokens=3, stream=True)
        assert list(stream)
    served.client.completions.create(model="weak", prompt=prompts[0], max_tokens=3)
    httpx.post(f"{served.url}/v1/completions", json={"model": "gpt-4", "prompt": "x"})
    after = stats()
    replica = after["replica"]

    def moved(*path: str) -> float:
        was, now = before, after
        for step in path:
            was, now = was.get(step, 0), now.get(step, 0)
        return now - was

    assert (moved("requests"), moved("routed"), moved("strong_calls_avoided")) == (8, 6, 4)
    assert (moved("by_route", "weak"), moved("by_route", "strong")) == (5, 2)
    assert (moved("by_reason", "score"), moved("by_reason", "requested"), moved("by_status", "404")) == (6, 1, 1)
    assert 0 < moved("tokens", "strong", "completion") <= 2 * 3
    assert moved("tokens", "weak", "prompt") > 0

    def all_exported(samples: list[Sample]) -> bool:
        requests = sums(samples, "ray_firewall_requests_total", replica)
        scores = sums(samples, "ray_firewall_router_score_count", replica)
        return requests.get(()) == after["requests"] and scores.get(()) == after["routed"]

    samples = wait_until(lambda: all_exported(found := exported()) and found, "Ray had exported the metrics")
    by_reason = sums(samples, "ray_firewall_requests_total", replica, "reason")
    by_reason.pop(("none",))
    assert by_reason == {(reason,): count for reason, count in after["by_reason"].items()}
    by_status = sums(samples, "ray_firewall_requests_total", replica, "status")
    assert by_status == {(status,): count for status, count in after["by_status"].items()}
    tokens = sums(samples, "ray_firewall_tokens_total", replica, "route", "kind")
    assert tokens == {(route, kind): n for route, kinds in after["tokens"].items() for kind, n in kinds.items() if n}
    assert sums(samples, "ray_firewall_strong_calls_avoided_total", replica) == {(): after["strong_calls_avoided"]}
    assert sums(samples, "ray_firewall_strong_fraction", replica) == {(): pytest.approx(after["strong_fraction"])}
    assert sums(samples, "ray_firewall_target_strong_fraction", replica) == {(): pytest.approx(after["target_strong_fraction"])}

    version = served.predictor.card.version
    scored = sums(samples, "ray_firewall_router_score_count", replica, "router")
    assert scored == {(version,): after["routed"]}
    buckets = sums(samples, "ray_firewall_router_score_bucket", replica, "le")
    assert len(buckets) == 21
    assert buckets[("1.0",)] == buckets[("+Inf",)] == after["routed"]  # no score lies above 1
    for part in ("router", "queue", "first_token", "total"):
        assert sum(sums(samples, f"ray_firewall_{part}_s_count", replica).values()) > 0


def test_a_replica_that_is_told_to_stop_writes_its_last_decisions_first(ray_cluster: None, tmp_path: Path) -> None:
    """One row, long before its file would be full or due, of a request that no model could answer."""
    from ray import serve
    from ray.serve.context import _get_global_client

    from serve_app.http.ingress import Ingress

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class StubRouter:
        async def decide_all(self, questions: list[DecisionRequest], spent: Any) -> list[list[Decision]]:
            return [[Decision("strong", "score", 0.25, 0.5, "v1", False, 0.3, query_id=prompt_id(q.texts[0]))] for q in questions]

    nowhere = OpenAIModelConfig(engine="openai", base_url=f"http://127.0.0.1:{free_port()}/v1", model="x")
    store = ArtifactStore(str(tmp_path))
    dataset = store.decisions()
    application = serve.deployment(serve.ingress()(Ingress), ray_actor_options={"num_cpus": 0}).bind(
        router=StubRouter.bind(),
        ids={"weak": "small", "strong": "large"},
        models={"weak": nowhere, "strong": nowhere},
        serving=ServingConfig.model_validate({"api_keys": "disabled", "decision_log": {"seconds_per_file": 3_600}}),
        decisions=dataset,
        spending=store.spending(),
    )
    # Other tests of the session may have a Serve that runs.
    ours = _get_global_client(raise_if_no_controller_running=False) is None
    if ours:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    serve.run(application, name="recorded", route_prefix="/recorded")
    port = _get_global_client().http_config.port
    response = httpx.post(
        f"http://127.0.0.1:{port}/recorded/v1/completions", json={"model": "firewall", "prompt": "Why?"}, timeout=60
    )
    assert response.status_code == 503
    assert dataset.files() == []
    if ours:
        serve.shutdown()
    else:
        serve.delete("recorded")
    wait_until(dataset.files, "the file was there")
    (row,) = dataset.read().to_pylist()
    assert (row["query_id"], row["p_weak"], row["status"], row["fallback"]) == (prompt_id("Why?"), 0.25, 503, "dead")
