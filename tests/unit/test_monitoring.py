"""Dashboard, alert rules and their documentation name metrics, panels and headings that exist; promtool checks them where it is."""

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.metrics import METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
PANELS: list[dict[str, Any]] = json.loads((FOLDER / "grafana" / "dashboards" / "firewall.json").read_text())["panels"]
TARGETS: list[dict[str, str]] = [target for panel in PANELS for target in panel.get("targets", [])]

RAYS_OWN = {  # by the file of the installed Ray that makes them
    "node_gpus_utilization": "dashboard/modules/reporter/reporter_agent.py",
    "node_gram_used": "dashboard/modules/reporter/reporter_agent.py",
    "node_gram_available": "dashboard/modules/reporter/reporter_agent.py",
    "serve_deployment_replica_healthy": "serve/_private/deployment_state.py",
    "serve_replica_processing_queries": "serve/_private/replica.py",
}
NUMBERS_OF_TRAINING = {"loss", "learning_rate", "num_samples_per_s"}
ASKED_AS_NUMBERS = {"$__rate_interval": "1m", "$__range": "1h"}


def exported() -> set[str]:
    """Every name that Prometheus sees: of serving, of the pipeline, and of Ray's own those that are used."""
    metrics = {name: metric.kind for name, metric in METRICS.items()}
    sources = "".join(path.read_text() for path in (ROOT / "firewall_ray").rglob("*.py"))
    metrics |= {name: kind.lower() for kind, name in re.findall(r'\b(Counter|Gauge|Histogram)\(\s*"(\w+)"', sources)}
    assert 'Gauge(f"firewall_ray_router_{name}"' in sources
    metrics |= {f"firewall_ray_router_{name}": "gauge" for name in NUMBERS_OF_TRAINING if f'"{name}": ' in sources}
    metrics |= dict.fromkeys(RAYS_OWN, "gauge")
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {f"ray_{name}{ending}" for name, kind in metrics.items() for ending in endings[kind]}


def names(expr: str) -> set[str]:
    """The metrics of a PromQL expression: what is neither a function, a keyword, a tag nor a string."""
    expr = re.sub(r'"[^"]*"', "", expr)
    expr = re.sub(r"\b(by|on|without|group_left|group_right|ignoring)\s*\([^)]*\)", "", expr)
    expr = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expr)
    words = set(re.findall(r"[a-zA-Z_:][\w:]*(?!\s*\()\b(?!\s*\()", expr))
    return words - {"and", "or", "unless", "by", "on", "group_left", "bool"}


EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for target in TARGETS]


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_query_names_metrics_that_exist(expr: str) -> None:
    assert names(expr)
    assert names(expr) - exported() <= {"up"}  # Prometheus' own: whether a scrape succeeded


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_query_filters_and_groups_by_tags_that_the_metric_has(expr: str) -> None:
    tags = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', expr))
    for group in re.findall(r"\bby\s*\(([^)]*)\)", expr):
        tags |= {tag.strip() for tag in group.split(",")}
    given = {"le", "job", "instance", "deployment", "application", "replica", "GpuIndex", "model", "stage", "key", "design"}
    known = given.union(*(METRICS[name].tags for name in METRICS if f"ray_{name}" in expr))
    assert tags <= known


@pytest.mark.parametrize(("name", "path"), RAYS_OWN.items())
def test_ray_still_has_the_metrics_that_we_take_from_it(name: str, path: str) -> None:
    (installed,) = importlib.util.find_spec("ray").submodule_search_locations  # type: ignore[union-attr]
    assert f'"{name}"' in (Path(installed) / path).read_text()


def test_the_parser_finds_a_name_that_is_wrong() -> None:
    assert names('sum by (le) (rate(ray_x_total{a="b"}[5m])) / on () group_left sum(ray_y) > 0.01 and abs(up) == 0') == {
        "ray_x_total",
        "ray_y",
        "up",
    }


def test_the_dashboard_is_as_its_script_writes_it() -> None:
    """Write it anew: python deploy/monitoring/make_dashboard.py"""
    script = runpy.run_path(str(FOLDER / "make_dashboard.py"))
    assert script["DASHBOARD"].read_text() == json.dumps(script["dashboard"](), indent=1) + "\n"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_says_how_bad_it_is_what_to_do_and_where_that_is_explained() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    anchors = {f"docs/operations.md#{heading.lower().replace(' ', '-')}" for heading in headings}
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["for"], rule["alert"]
        assert {"summary", "action"} < rule["annotations"].keys(), rule["alert"]
        assert rule["annotations"]["runbook"] in anchors, rule["alert"]


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    """Run them: promtool test rules deploy/monitoring/alerts_test.yml"""
    cases = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in cases for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in RULES}


def test_the_line_on_the_drift_panel_is_where_the_alert_fires() -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == "Score drift"]
    (rule,) = [rule for rule in RULES if rule["alert"] == "ScoreDrift"]
    assert rule["expr"] == f"max(ray_firewall_score_drift) > {panel['fieldConfig']['defaults']['thresholds']['steps'][1]['value']}"


def test_on_kubernetes_pods_are_scraped_under_the_name_that_the_rules_ask_for_and_let_the_scraper_in() -> None:
    (scraped,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    kuberay = ROOT / "deploy" / "kuberay"
    (endpoint,) = yaml.safe_load((kuberay / "pod_monitor.yaml").read_text())["spec"]["podMetricsEndpoints"]
    assert {"targetLabel": "job", "replacement": scraped["job_name"]} in endpoint["relabelings"]
    assert any(f'up{{job="{scraped["job_name"]}"}}' in rule["expr"] for rule in RULES)
    allowed = yaml.safe_load((kuberay / "network_policy.yaml").read_text())["spec"]["ingress"]
    assert any({"port": endpoint["port"]} in rule.get("ports", []) for rule in allowed)


def test_the_command_in_the_docs_makes_of_our_rules_what_the_prometheus_operator_takes() -> None:
    docs = (ROOT / "docs" / "operations.md").read_text()
    (command,) = re.findall(r"^(\{ printf .*?; \}) \| kubectl apply -f -$", docs, re.MULTILINE | re.DOTALL)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    made = yaml.safe_load(done.stdout)
    assert (made["apiVersion"], made["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert made["spec"] == yaml.safe_load((FOLDER / "alerts.yml").read_text())


def promtool(*arguments: str) -> None:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not here; Debian has it in the package prometheus")
    done = subprocess.run([found, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_prometheus_can_read_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = []
    for i, target in enumerate(TARGETS):
        expr = target["expr"]
        for asked, number in ASKED_AS_NUMBERS.items():
            expr = expr.replace(asked, number)
        rules.append({"record": f"query_{i}", "expr": expr})
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))
