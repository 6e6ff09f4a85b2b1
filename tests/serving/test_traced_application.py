"""One request through all deployments for real, as one trace: ingress, router, an engine of ours and a model that is bought."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai_server import MODEL, openai_server
from otlp_collector import PARENT, TRACE, TRACEPARENT, Collector
from running_app import Served, wait_until
from servable_run import models_elsewhere, write_run

pytestmark = pytest.mark.slow

ROUTED = {"POST /v1/chat/completions", "score", "chat weak"}


@pytest.fixture
def url(served: Served, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of an application that is built where the variables name the collector."""
    from ray import serve

    from serve_app.app import build_app

    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway")
    config_path = Path(write_run(tmp_path))
    raw = yaml.safe_load(config_path.read_text())
    with openai_server() as server:
        raw["models"]["strong"] = models_elsewhere(server.url, model=MODEL)["strong"]
        raw["serving"] |= {"other_models": "warn", "decision_log": {}}
        config_path.write_text(yaml.safe_dump(raw))
        serve.run(build_app({"config": str(config_path)}), name="traced", route_prefix="/traced")
        yield f"{served.url}/traced/v1/chat/completions"
        serve.delete("traced")


def test_a_request_is_one_trace_through_all_deployments_and_replicas_that_stop_send_what_they_have(
    url: str, collector: Collector
) -> None:
    from ray import serve

    def ask(model: str, **options: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Zyxwvutopia?"}], "max_tokens": 3, **options}
        return httpx.post(url, json=body, headers={"traceparent": TRACEPARENT, "x-request-id": f"req-{model}"}, timeout=60)

    # So low that no score is below the threshold, and so high that all are.
    for model in ("firewall-0.0001", "firewall-0.9999"):
        response = ask(model)
        assert response.status_code == 200
        assert response.headers.get_list("x-request-id") == [f"req-{model}"]
    assert ask("weak", stream=True).status_code == 200
    wait_until(lambda: len(collector.spans) >= 8, "the spans have come", 60)

    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert {span.resource["service.name"] for span in collector.spans} == {"gateway"}
    requests = {span.attributes["firewall.request_id"]: span for span in collector.spans if span.parent == PARENT}
    weak, strong, streamed = (requests[f"req-{model}"] for model in ("firewall-0.0001", "firewall-0.9999", "weak"))
    children = collector.children(weak)
    assert {weak.name, *children} == ROUTED
    deployments = {span.name: span.resource["ray.serve.deployment"] for span in (weak, *children.values())}
    assert (deployments["POST /v1/chat/completions"], deployments["score"]) == ("Ingress", "Router")
    assert "weak" in deployments["chat weak"]
    assert children["score"].attributes["firewall.score"] == weak.attributes["firewall.score"]
    for name in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
        assert children["chat weak"].attributes[name] == weak.attributes[name] > 0
    assert set(collector.children(strong)) == {"score", f"chat {MODEL}"}
    (answer,) = collector.children(streamed).values()
    assert answer.name == "chat weak"
    assert answer.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert b"Zyxwvutopia" not in b"".join(collector.raw)

    num_before = len(collector.spans)
    assert ask("weak").status_code == 200
    serve.delete("traced")  # before they would have been sent
    assert {span.name for span in collector.spans[num_before:]} == {"POST /v1/chat/completions", "chat weak"}
