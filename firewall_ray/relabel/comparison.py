"""Is the new router better than the one in service? folded/ and the scores of both -> relabel/<round>/comparison/.

On queries that neither was trained on: the run's test split, and the live queries that were held out. The difference in APGR is
resampled in pairs, and the new router is better where the whole interval lies above 0. Runs in the driver, numpy only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firewall_ray import policy
from firewall_ray.config.run import EvaluationConfig, RunConfig
from firewall_ray.config.serve_file import ServeFile
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores, read_labels, read_scores
from firewall_ray.evaluation.intervals import Difference, bootstrap_curves, intervals, paired_bootstrap
from firewall_ray.evaluation.metrics import performance_curve
from firewall_ray.relabel.stores import FoldedStore
from firewall_ray.router.card import load_card
from firewall_ray.stages.report import COMPARED, without_nan
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import fingerprint
from firewall_ray.store.layout import ArtifactStore

# Deciding by apgr_mean would never decide otherwise: apgr = 1.1 * apgr_mean - 0.05 for every curve.
DECIDES = "apgr"
ALL, RUN, LIVE = "all", "the run's test split", "live, held out"
SERVE_FILE = "serve_config.yaml"

Comparison = dict[str, Any]


def run_comparison(
    config: RunConfig, store: ArtifactStore, folded: FoldedStore, new: str, serve_file: ServeFile, *, force: bool = False
) -> StageResult:
    """Compare the router `new` with the one that `serve_file` has in service; write comparison.json and comparison.md, and where
    `new` is better serve_config.yaml, which is `serve_file` with it.
    """
    dataset, in_service = folded.comparison(), serve_file.router
    settings = {
        "labels": folded.labels().require([]).identity(),
        "scores": {name: folded.scores(name).require().identity() for name in (in_service, new)},
        "in_service": in_service,
        "evaluation": config.evaluation.model_dump(mode="json"),
        # The output holds a changed copy of it: another file in service wants another copy, though the routers are the same.
        "serve_config": fingerprint(serve_file.content),
    }
    output = Output.plan("compare", dataset, settings, force=force)

    def write() -> dict[str, str]:
        # The test split of folded/: the run's own, and the live queries that their task or `draw_split` held out.
        queries, validation_ids = read_labels(folded, [])
        old_scores, new_scores = (read_scores(folded, name, queries, validation_ids) for name in (in_service, new))
        of_run = set(store.labels().require(["query_id"]).read(["query_id"])["query_id"].to_pylist())
        comparison: Comparison = {
            "in_service": in_service,
            "new": new,
            "version": load_card(folded.router(new)).version,
            "evaluation": config.evaluation.model_dump(mode="json"),
            "relabelled": _relabelled(folded),
            "held_out": compare(queries, old_scores, new_scores, of_run, config.evaluation),
        }
        comparison["is_better"] = is_better(comparison["held_out"][ALL]["difference"][DECIDES])
        strict = without_nan({**comparison, "held_out": _plain(comparison["held_out"])})
        output.begin()
        dataset.write_bytes("comparison.json", json.dumps(strict, indent=2, allow_nan=False).encode())
        dataset.write_bytes("comparison.md", markdown(strict).encode())
        if comparison["is_better"]:
            dataset.write_bytes(SERVE_FILE, serve_file.with_router(new, comparison["version"]).encode())
        return {"winner": new if comparison["is_better"] else in_service}

    return make(config, output, write)


def compare(
    queries: LabelledQueries, in_service: RouterScores, new: RouterScores, of_run: set[str], evaluation: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Both routers and their paired difference on all held-out queries, and on the run's (`of_run`) and the live ones apart."""
    # Bool, (num_queries,). What the run's labels/ does not have came with this round or one before.
    is_of_run = np.array([query_id in of_run for query_id in queries.query_ids], dtype=bool)
    parts = {ALL: np.ones(len(queries), dtype=bool), RUN: is_of_run, LIVE: ~is_of_run}
    return {
        part: _compare(queries, {"in_service": in_service, "new": new}, np.flatnonzero(mask), evaluation)
        for part, mask in parts.items()
        if mask.any()
    }


def _compare(
    queries: LabelledQueries, routers: Mapping[str, RouterScores], rows: NDArray[np.intp], evaluation: EvaluationConfig
) -> dict[str, Any]:
    weak, strong = queries.pass_rate_weak[rows], queries.pass_rate_strong[rows]
    # The prompt breaks ties, as on the server: a tie then goes the way that it goes in service.
    prompts = [queries.prompts[row] for row in rows]
    orders = {role: policy.rank(router.p_weak[rows], prompts, evaluation.seed) for role, router in routers.items()}
    curves = {role: performance_curve(weak, strong, order) for role, order in orders.items()}
    # Float64, (num_bootstrap, 11) each, on the same draws of queries. Drawn apart, the luck of both draws would widen the
    # difference.
    resampled = bootstrap_curves(weak, strong, orders, evaluation.num_bootstrap, evaluation.seed)
    pair = (curves["new"], curves["in_service"], resampled["new"], resampled["in_service"])
    found = {role: intervals(curve, resampled[role], evaluation.confidence) for role, curve in curves.items()}
    return {
        "num_queries": len(rows),
        **{role: {metric: of_router[metric] for metric in COMPARED} for role, of_router in found.items()},
        "difference": {metric: paired_bootstrap(metric, *pair, evaluation.confidence) for metric in COMPARED},
    }


def is_better(difference: Difference) -> bool:
    """Whether the interval lies above 0. False where there is none: an undefined difference changes nothing that serves."""
    # Against NaN every comparison is False.
    return bool(difference.low > 0)


def load_comparison(folded: FoldedStore) -> Comparison:
    """The finished comparison.json. Raises ArtifactMissing when there is none."""
    loaded: Comparison = json.loads(folded.comparison().require().read_bytes("comparison.json"))
    return loaded


def markdown(comparison: Comparison) -> str:
    """A page's worth: what was decided and why, the numbers, and what they rest on."""
    evaluation, relabelled = comparison["evaluation"], comparison["relabelled"]
    lines = [
        f"# {comparison['new']} against {comparison['in_service']}",
        "",
        verdict(comparison),
        "",
        f"| held-out queries | number | APGR of {comparison['in_service']} | APGR of {comparison['new']} | difference |",
        "|---|---|---|---|---|",
    ]
    for part, found in comparison["held_out"].items():
        values = [_words(found[role][DECIDES]) for role in ("in_service", "new")]
        lines.append(
            f"| {part} | {found['num_queries']:,} | {' | '.join(values)} | {_words(found['difference'][DECIDES], sign='+')} |"
        )
    rests_on = (
        f"Of {relabelled['distinct']:,} distinct queries in the decision log {relabelled['drawn']:,} were drawn, "
        f"{relabelled['not_gradable']:,} of which have no reference and were left out. {relabelled['labels']:,} were labelled."
    )
    resampled = f"Intervals: {evaluation['confidence']:.0%}, {evaluation['num_bootstrap']:,} resamples of the queries, paired."
    lines += ["", resampled, "", rests_on, ""]
    return "\n".join(lines)


def verdict(comparison: Comparison) -> str:
    """One sentence for people."""
    difference = comparison["held_out"][ALL]["difference"][DECIDES]
    words = f"{_words(difference, sign='+')} in APGR on {comparison['held_out'][ALL]['num_queries']:,} held-out queries"
    if comparison["is_better"]:
        return f"{comparison['new']} is better: {words}."
    if difference["low"] is None:
        return f"{comparison['in_service']} stays: there the strong model is not better than the weak one, so APGR says nothing."
    why = "worse" if difference["high"] < 0 else "not better beyond chance"
    return f"{comparison['in_service']} stays: {comparison['new']} is {why}, {words}."


def _words(interval: Mapping[str, Any], sign: str = "") -> str:
    if interval["low"] is None:
        return "undefined"
    return f"{interval['value']:{sign}.3f} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


def _relabelled(folded: FoldedStore) -> dict[str, int]:
    drawn = folded.drawn().manifest()["counts"]
    queries = folded.queries().manifest()["counts"]
    labels = folded.folded().manifest()["counts"]
    return {
        "distinct": drawn["distinct"],
        "drawn": drawn["queries"],
        "not_gradable": queries["not_gradable"],
        # A source without a row has no count.
        "labels": labels.get("this_round", 0),
    }


def _plain(held_out: Mapping[str, Any]) -> Any:
    """Intervals as mappings."""
    if isinstance(held_out, Mapping):
        return {key: _plain(value) for key, value in held_out.items()}
    return asdict(held_out) if hasattr(held_out, "__dataclass_fields__") else held_out
