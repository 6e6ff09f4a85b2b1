"""Labels and scores -> report/: every number as report.json, the figures as PNG, and a self-contained report.html.

Rows in: labels/ and scores/<router>/, whoever wrote them; test split. Of grades/ the verdicts, where they are there: what the
queries are blocked for. With `evaluation.metrics` queries/ and samples/ too. The controls are scored on the way (controls.py).
Runs in the driver: no Ray.
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firewall_ray import policy
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError
from firewall_ray.evaluation import html, plots
from firewall_ray.evaluation.answer_metrics import add_answer_metrics, inputs_of_metrics
from firewall_ray.evaluation.bins import binned
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores, read_labels, read_scores, router_names, scores_label
from firewall_ray.evaluation.intervals import bootstrap_curves, intervals, paired_bootstrap, percentile_interval
from firewall_ray.evaluation.metrics import FRACTIONS, MIN_GAP, oracle_p_weak, performance_curve
from firewall_ray.evaluation.verdicts import read_verdicts, verdict_sections, warning
from firewall_ray.stages.controls import run_controls
from firewall_ray.stages.judge_facts import judge_facts
from firewall_ray.stages.stage import Output, Stage, StageResult, make
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore

logger = logging.getLogger("firewall_ray")

ALL = "all"
BASELINES = ("random", "oracle")
COMPARED = ("apgr", "apgr_mean", "pass_rate_20", "pass_rate_50", "pass_rate_80")
Report = dict[str, Any]


def run_report(config: RunConfig, store: ArtifactStore, *, limit: int | None = None, force: bool = False) -> StageResult:
    """Evaluate every router under scores/ on the labelled test queries and write report/.

    Raises ArtifactMissing without labels or scores, ArtifactError where they do not fit (see `inputs`).
    """
    names = router_names(store)
    reference = next((design for design in config.router.designs if design in names), names[0])
    controls = run_controls(config, store, force=force)
    settings = {
        # Columns are checked by `read_labels`, which knows the designs that the scores stand for.
        "labels": store.labels().require([]).identity(),
        "scores": {name: store.scores(name).require().identity() for name in [*names, *controls.names]},
        "evaluation": config.evaluation.model_dump(mode="json"),
        "pair": config.pair.model_dump(),
        "grades": {key: _grades_identity(store, key) for key in (config.pair.weak, config.pair.strong)},
        "reference": reference,
        "limit": limit,
        "metrics": inputs_of_metrics(config, store),
    }
    dataset = store.report()
    output = Output.plan("report", dataset, settings, force=force, path=f"{dataset.path}/report.html")

    def write() -> dict[str, int]:
        designs = sorted({scores_label(name) for name in names})
        queries, validation_ids = read_labels(store, designs, limit)
        routers = [read_scores(store, name, queries, validation_ids) for name in names]
        of_controls = [read_scores(store, name, queries, validation_ids) for name in controls.names]
        report = build_report(config, queries, routers, reference, of_controls, controls.notices)
        report["judge"] = judge_facts(config, store)
        _add_verdicts(report, store, queries)
        add_answer_metrics(report, config, store, queries)
        figures = plots.draw(report)
        output.begin()
        for name, figure in figures.items():
            file_name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)  # foreign tasks may be called anything
            dataset.write_bytes(f"{file_name}.png", plots.png(figure))
        page = html.render(report, {name: plots.svg(figure) for name, figure in figures.items()})
        dataset.write_bytes("report.html", page.encode())
        # NaN is no JSON, though Python writes it; here it would be a bug of `without_nan`.
        dataset.write_bytes("report.json", json.dumps(report, indent=2, allow_nan=False).encode())
        return {"queries": len(queries), "routers": len(routers), "controls": len(of_controls)}

    return make(config, output, write)


def _grades_identity(store: ArtifactStore, key: str) -> str | None:
    grades = store.grades(key)
    return grades.identity() if grades.state() in ("finished", "foreign") else None


def _add_verdicts(report: Report, store: ArtifactStore, queries: LabelledQueries) -> None:
    """The sections `verdicts` and `blocked`, and their warning; or `without_verdicts`: why they are not there."""
    try:
        counts = {key: read_verdicts(store.grades(key), queries.query_ids) for key in report["models"]}
    except ArtifactError as e:  # Also ArtifactMissing. The report needs labels and scores alone: no grades may stop it.
        report["without_verdicts"] = str(e)
    else:
        unknown = [key for key, of_model in counts.items() if not of_model.any()]
        if not unknown:
            sections = verdict_sections(queries, counts)
            report |= without_nan(sections)
            report["notices"] += filter(None, [warning(sections)])
            return
        report["without_verdicts"] = (
            f"grades/{unknown[0]} has no verdicts of these queries: they were imported, or made by another program or version. "
            "Samples are graded again by: python jobs/grade.py --config FILE --force"
        )
    logger.info("report: nothing on what queries are blocked for: %s", report["without_verdicts"])


def build_report(
    config: RunConfig,
    queries: LabelledQueries,
    routers: list[RouterScores],
    reference: str,
    controls: Sequence[RouterScores] = (),
    notices: Sequence[str] = (),
) -> Report:
    """report.json as Python values, None for what is undefined. `reference`: the router that the others are compared with;
    `controls`: what all of them are compared with, measured as they are and not ranked among them."""
    tasks = queries.task_names()
    report: Report = {
        "models": {config.pair.weak: {}, config.pair.strong: {}},
        "pair": config.pair.model_dump(),
        "routers": {name: {} for name in [*(router.name for router in (*routers, *controls)), *BASELINES]},
        "comparisons": {"reference": reference, "differences": {router.name: {} for router in routers if router.name != reference}},
        # By router, control and task: the router's APGR minus the control's.
        "controls": {router.name: {control.name: {} for control in controls} for router in routers},
        "curves": {},
        "thresholds": {},
        "bins": {},
        "notices": [
            *notices,
            *(_left_out(router, tasks) for router in routers if len(router.tasks) < len(tasks)),
        ],
        "settings": {**config.evaluation.model_dump(), "split": "test", "num_queries": len(queries), "tasks": tasks},
        "provenance": {"created_at": datetime.now(UTC).isoformat(timespec="seconds"), "root": config.root, "versions": versions()},
    }
    for task in [ALL] if len(tasks) == 1 else [ALL, *tasks]:
        logger.info("report: %s, %d routers, %d resamples", task, len(routers), config.evaluation.num_bootstrap)
        _add_task(report, task, queries, routers, controls, config)
    if len(tasks) == 1:  # the same queries, so the same numbers
        compared = [*report["comparisons"]["differences"].values(), *(d for of in report["controls"].values() for d in of.values())]
        for section in (*report["models"].values(), *report["routers"].values(), *compared):
            section.update({tasks[0]: section[ALL]})
    for router in routers:
        covered = np.isin(queries.tasks, sorted(router.tasks))
        report["thresholds"][router.name] = _thresholds(queries, router, covered, config.evaluation.seed)
        label = scores_label(router.name)
        rows = binned(
            router.p_weak[covered],
            queries.pass_rate_weak[covered],
            queries.pass_rate_strong[covered],
            queries.labels[label][covered],
            config.evaluation.num_bins,
        )
        report["bins"][router.name] = {"label": label, "rows": rows}
    strict: Report = without_nan(report)
    return strict


def _left_out(router: RouterScores, tasks: list[str]) -> str:
    return f"{router.name} has no scores for {', '.join(sorted(set(tasks) - router.tasks))}: 'all' means the other tasks for it."


def _add_task(
    report: Report,
    task: str,
    queries: LabelledQueries,
    routers: list[RouterScores],
    controls: Sequence[RouterScores],
    config: RunConfig,
) -> None:
    """Metrics, curves and comparisons of one task, or of all. Routers that cover other queries are resampled apart."""
    wanted = set(queries.task_names()) if task == ALL else {task}
    # All that is wanted comes first, also without a router: models and baselines are measured on it.
    groups: dict[frozenset[str], list[RouterScores]] = {frozenset(wanted): []}
    for router in routers:
        if covered := router.tasks & wanted:
            groups.setdefault(frozenset(covered), []).append(router)
    report["curves"][task] = {}
    for covered, group in groups.items():
        rows = np.flatnonzero(np.isin(queries.tasks, sorted(covered)))
        # Not in groups of their own: each is measured beside the routers that it is compared with.
        usable = [control for control in controls if covered <= control.tasks]
        _add_group(report, task, queries, rows, group, usable, config, with_models=covered == wanted)


def _add_group(
    report: Report,
    task: str,
    queries: LabelledQueries,
    rows: NDArray[np.intp],
    routers: list[RouterScores],
    controls: list[RouterScores],
    config: RunConfig,
    with_models: bool,
) -> None:
    """Routers that are measured on the same rows, hence on the same resamples; with the models and baselines, or without."""
    settings = config.evaluation
    weak, strong = queries.pass_rate_weak[rows], queries.pass_rate_strong[rows]
    # The prompt breaks ties: it is what the server knows of a query, so a tie goes the same way there.
    prompts = [queries.prompts[row] for row in rows]
    orders: dict[str, NDArray[np.intp] | None] = {
        router.name: policy.rank(router.p_weak[rows], prompts, settings.seed) for router in [*routers, *controls]
    }
    if with_models:
        # setdefault: a router may have been given that name, and then keeps its scores.
        orders.setdefault("random", None)
        orders.setdefault("oracle", policy.rank(oracle_p_weak(weak, strong), prompts, settings.seed))
    resampled = bootstrap_curves(weak, strong, orders, settings.num_bootstrap, settings.seed)
    curves = {
        # float64, (11,), at FRACTIONS. Random routing is its expectation, a straight line; only its resamples are shuffled.
        name: np.linspace(weak.mean(), strong.mean(), len(FRACTIONS)) if order is None else performance_curve(weak, strong, order)
        for name, order in orders.items()
    }
    for name, control in [(router.name, control.name) for router in routers for control in controls]:
        pair = (curves[name], curves[control], resampled[name], resampled[control])
        report["controls"][name][control][task] = asdict(paired_bootstrap("apgr", *pair, settings.confidence))
    # Beside a router of fewer tasks a control has other numbers than its own.
    shown = curves if with_models else {router.name: curves[router.name] for router in routers}
    for name, curve in shown.items():
        found = intervals(curve, resampled[name], settings.confidence)
        report["routers"][name][task] = {**{metric: asdict(i) for metric, i in found.items()}, "num_queries": len(rows)}
        bounds = [percentile_interval(v, resampled[name][:, i], settings.confidence) for i, v in enumerate(curve)]
        report["curves"][task][name] = {
            "strong_fraction": FRACTIONS.tolist(),
            "pass_rate": curve.tolist(),
            "low": [bound.low for bound in bounds],
            "high": [bound.high for bound in bounds],
        }
    if with_models:
        # Any curve would do: at the fractions 0 and 1 each is the pass rate of one model, whatever the order.
        curve, resamples = curves["random"], resampled["random"]
        for model, point in ((config.pair.weak, 0), (config.pair.strong, -1)):
            bound = percentile_interval(curve[point], resamples[:, point], settings.confidence)
            report["models"][model][task] = {"pass_rate": bound.value, "low": bound.low, "high": bound.high}
    reference = report["comparisons"]["reference"]
    if reference in curves:
        for name in [router.name for router in routers if router.name != reference]:
            pair = (curves[name], curves[reference], resampled[name], resampled[reference])
            report["comparisons"]["differences"][name][task] = {
                metric: asdict(paired_bootstrap(metric, *pair, settings.confidence)) for metric in COMPARED
            }


def _thresholds(queries: LabelledQueries, router: RouterScores, covered: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """What a strong fraction asked for turns out to be: calibrated on validation where it is scored, else on test itself."""
    rows = np.flatnonzero(covered)
    p_weak, prompts = router.p_weak[rows], [queries.prompts[row] for row in rows]
    weak, strong = queries.pass_rate_weak[rows], queries.pass_rate_strong[rows]
    held_out = len(router.calibration) > 0
    calibration = router.calibration if held_out else p_weak
    table = policy.QuantileTable.from_scores(calibration)
    gap = strong.mean() - weak.mean()
    found = []
    # 0 and 1 mean never and always, and need no threshold.
    for fraction in FRACTIONS[1:-1]:
        # linspace gives 0.30000000000000004.
        threshold = table.threshold(round(float(fraction), 1))
        goes_strong = policy.goes_strong(p_weak, prompts, threshold, seed)
        pass_rate = float(np.where(goes_strong, strong, weak).mean())
        found.append(
            {
                "strong_fraction": threshold.strong_fraction,
                "threshold": threshold.value,
                "num_tied": int(np.sum(calibration == threshold.value)),
                "tie_share": threshold.tie_share,
                "realised_fraction": float(goes_strong.mean()),
                "pass_rate": pass_rate,
                "pgr": float((pass_rate - weak.mean()) / gap) if gap > MIN_GAP else math.nan,
            }
        )
    return {"calibrated_on": "validation" if held_out else "test", "num_calibration": table.num_scores, "rows": found}


def without_nan(value: Any) -> Any:
    """The same JSON value with None for NaN and the infinities, which strict JSON lacks."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


STAGE = Stage("report", run_report, reads=("labels", "scores", "grades"), writes=("report", "scores"))
