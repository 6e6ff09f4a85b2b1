"""Writes Grafana's dashboard `firewall.json`: here each panel is a line, there it is forty.

    python deploy/monitoring/make_dashboard.py

Grafana asks for a rate over `$__rate_interval`, at least four scrapes, and for a sum over `$__range`, all that is on the screen.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

DASHBOARD = Path(__file__).parent / "grafana" / "dashboards" / "firewall.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PANELS_A_ROW, WIDTH, HEIGHT = 3, 8, 8  # in Grafana's grid of 24 columns


@dataclass(frozen=True)
class Panel:
    """queries: PromQL by legend. unit: Grafana's name of it. alert_at: where the rule in alerts.yml fires, drawn as a line."""

    title: str
    unit: str
    queries: dict[str, str]
    description: str
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    alert_at: float | None = None


def rate(metric: str, by: str) -> str:
    """A counter's increase a second, summed by tags over replicas."""
    return f"sum by ({by}) (rate(ray_firewall_{metric}_total[$__rate_interval]))"


def percentiles(metric: str, by: str) -> dict[str, str]:
    """The median, the 90th and the 99th percentile of a histogram over all replicas, interpolated within a bin."""
    buckets = f"sum by (le, {by}) (rate(ray_firewall_{metric}_bucket[$__rate_interval]))"
    return {f"p{p} {{{{{by}}}}}": f"histogram_quantile({p / 100}, {buckets})" for p in (50, 90, 99)}


GPU_MEMORY = "sum by (instance) (ray_node_gram_used) / sum by (instance) (ray_node_gram_used + ray_node_gram_available)"

ROWS: dict[str, list[Panel]] = {
    "Serving": [
        Panel("Requests by route", "reqps", {"{{route}}": rate("requests", "route")}, "The model that answered; none: an error."),
        Panel(
            "Requests by who decided",
            "reqps",
            {"{{reason}}": rate("requests", "reason")},
            "score: the router. router-timeout and router-failed: nobody, so the fail_open model answered.",
        ),
        Panel(
            "Strong fraction against target",
            "percentunit",
            {
                "strong fraction": "avg(ray_firewall_strong_fraction)",
                "target": "avg(ray_firewall_target_strong_fraction)",
                "{{fraction}}, budget control": 'avg by (fraction) (ray_firewall_budget{fraction!="target"})',
            },
            "Of the last 1,000 requests of each ingress replica. Budget control's lines only where it is on.",
        ),
        Panel("Whole answer", "s", percentiles("total_s", "route"), "From arrival to the last byte."),
        Panel("First token", "s", percentiles("first_token_s", "route"), "From arrival, of answers that are streamed."),
        Panel("Router's decision", "s", percentiles("router_s", "reason"), "From arrival to the decision, or to giving it up."),
        Panel("Queue before a model", "s", percentiles("queue_s", "route"), "On the way to a replica and waiting there."),
        Panel("Tokens", "short", {"{{route}} {{kind}}": rate("tokens", "route, kind")}, "A second, by model."),
        Panel(
            "What went wrong",
            "reqps",
            {
                "HTTP {{status}}": 'sum by (status) (rate(ray_firewall_requests_total{status=~"5..|499"}[$__rate_interval]))',
                "fallback {{from}} to {{to}}: {{cause}}": rate("fallbacks", "from, to, cause"),
                "refused {{status}}": rate("refusals", "status"),
            },
            "499: the client left. Refusals are turned away before anything else, and are no requests.",
        ),
        Panel(
            "Router's scores",
            "short",
            {"{{le}}": "sum by (le) (increase(ray_firewall_router_score_bucket[$__rate_interval]))"},
            "p_weak of routed requests in 20 bins. Below the threshold they go to the strong model.",
            kind="heatmap",
        ),
        Panel(
            "Score drift",
            "short",
            {"worst replica": "max(ray_firewall_score_drift)"},
            "Population stability index of the last 1,000 scores against those that the router was calibrated on.",
            alert_at=0.25,
        ),
        Panel(
            "Avoided",
            "short",
            {
                "strong calls": "sum(increase(ray_firewall_strong_calls_avoided_total[$__range]))",
                "US dollars (estimated)": "sum(increase(ray_firewall_estimated_saving_usd_total[$__range]))",
            },
            "In the time on the screen. Dollars need serving.prices.",
            kind="stat",
        ),
        Panel(
            "US dollars an hour",
            "currencyUSD",
            {"{{route}}": "3600 * sum by (route) (rate(ray_firewall_cost_usd_total[$__rate_interval]))"},
            "By the model that was paid. Needs serving.prices.",
        ),
        Panel(
            "US dollars per 1,000 requests",
            "currencyUSD",
            {
                "cost": "1000 * sum(rate(ray_firewall_cost_usd_total[$__rate_interval])) "
                '/ sum(rate(ray_firewall_requests_total{status="200"}[$__rate_interval]))',
                "saved, {{bound}}": "avg by (bound) (ray_firewall_saved_usd_per_1000_requests)",
            },
            "Saved against the strong model for all, of each ingress replica since it started, with its 95% interval.",
        ),
        Panel(
            "Healthy replicas",
            "short",
            {"{{deployment}}": "sum by (deployment) (ray_serve_deployment_replica_healthy)"},
            "As Serve's health checks find them.",
        ),
        Panel(
            "In progress",
            "short",
            {"{{deployment}}": "sum by (deployment) (ray_serve_replica_processing_queries)"},
            "Requests at the replicas of each deployment, what autoscaling goes by.",
        ),
        Panel(
            "Decision log",
            "wps",
            {"{{outcome}}": rate("decision_log_rows", "outcome")},
            "Rows written, and those dropped because storage failed or was too slow.",
        ),
    ],
    "Pipeline": [
        Panel("Rows sampled", "rps", {"{{model}}": rate("sampling_rows", "model")}, "Queries a second, all n samples of each."),
        Panel("Tokens generated", "short", {"{{model}}": rate("sampling_tokens", "model")}, "A second, prompts not counted."),
        Panel("Failed queries", "rps", {"{{model}}": rate("sampling_errors", "model")}, "They become rows with `error`."),
        Panel(
            "Rows left",
            "short",
            {"{{stage}} {{key}}": "ray_firewall_stage_rows_left"},
            "Of the stages that run now. A line that lies flat for half an hour is an alert.",
        ),
        Panel(
            "Time left",
            "s",
            {"{{stage}} {{key}}": "ray_firewall_stage_rows_left / (-deriv(ray_firewall_stage_rows_left[10m]) > 0)"},
            "At the speed of the last ten minutes.",
        ),
        Panel(
            "Training loss",
            "short",
            {"{{design}}": "ray_firewall_ray_router_loss"},
            "By step. TensorBoard files under routers/ have more.",
        ),
        Panel(
            "GPU use",
            "percent",
            {"{{instance}} GPU {{GpuIndex}}": "avg by (instance, GpuIndex) (ray_node_gpus_utilization)"},
            "As the driver reports it: the share of time in which some kernel ran.",
        ),
        Panel("GPU memory", "percentunit", {"{{instance}}": GPU_MEMORY}, "vLLM takes gpu_memory_utilization of it at once."),
    ],
}


def dashboard() -> dict[str, Any]:
    """Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, its_panels in ROWS.items():
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": place, "panels": []})
        for i, panel in enumerate(its_panels):
            x, y = i % PANELS_A_ROW * WIDTH, top + 1 + i // PANELS_A_ROW * HEIGHT
            panels.append(_panel(panel, {"x": x, "y": y, "w": WIDTH, "h": HEIGHT}))
        top = y + HEIGHT
    for number, made in enumerate(panels, start=1):
        made["id"] = number
    return {
        "uid": "firewall-ray",
        "title": "Firewall Routing",
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one cursor on all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2}]},
        "panels": panels,
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    """One of the row's, without its id."""
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any] = {}
    if panel.alert_at is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.alert_at}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
    if panel.kind == "heatmap":
        options = {"calculate": False, "yAxis": {"unit": "none"}, "color": {"mode": "scheme", "scheme": "Spectral", "steps": 64}}
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": SOURCE,
            "expr": expr,
            "legendFormat": legend,
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        }
        for i, (legend, expr) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def main() -> None:
    """Write grafana/dashboards/firewall.json anew."""
    DASHBOARD.parent.mkdir(parents=True, exist_ok=True)
    DASHBOARD.write_text(json.dumps(dashboard(), indent=1) + "\n")
    typer.echo(str(DASHBOARD))


if __name__ == "__main__":
    typer.run(main)
