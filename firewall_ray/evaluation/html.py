"""report.json and the figures as one self-contained page: inline CSS and SVG, light and dark, nothing from outside."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from firewall_ray.evaluation.controls import CONTROLS, controls_on, difference_text, is_beaten, unbeaten, warnings_of
from firewall_ray.evaluation.table import by_apgr, number, percent_text


def templates(package: str) -> Environment:
    """The templates in a package's folder. They escape, and refuse a name that they were not given."""
    return Environment(
        loader=PackageLoader(package, "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render(report: dict[str, Any], figures: Mapping[str, str]) -> str:
    """The page. `figures`: SVG elements by figure name (see `plots.draw`). Names and tasks are escaped."""
    environment = templates("firewall_ray.evaluation")
    environment.filters |= {"number": number, "percent": percent_text, "signed": _signed, "points": _points}
    ranked = by_apgr(report, "all")
    return environment.get_template("report.html.j2").render(
        report=report,
        # Not escaped again: matplotlib escapes names when it writes an SVG.
        figures={name: Markup(svg) for name, svg in figures.items()},
        ranked=ranked,
        baselines=[name for name in ("random", "oracle") if name not in ranked],
        tasks=report["settings"]["tasks"],
        weak=report["pair"]["weak"],
        strong=report["pair"]["strong"],
        finding=finding(report, ranked[0]),
        whisker=_whisker(report),
        by_apgr=by_apgr,
        controls=CONTROLS,
        controls_on=controls_on,
        difference_text=difference_text,
        is_beaten=is_beaten,
        warnings=warnings_of(report, ranked),
    )


def finding(report: Mapping[str, Any], best: str) -> str:
    """The report in one sentence, as strong as the interval allows and no stronger."""
    metrics, weak, strong = report["routers"][best]["all"], report["pair"]["weak"], report["pair"]["strong"]
    apgr, half = metrics["apgr"], metrics["pass_rate_50"]["value"]
    if apgr["value"] is None:
        return (
            f"On these queries {strong} is not better than {weak}, so there is no gap to recover: APGR and CPT are undefined. "
            f"Check models and grading, or route everything to {weak}."
        )
    # 0.5: a random order's APGR by the trapezoid, whatever the models.
    if apgr["low"] is None or apgr["low"] <= 0.5:
        return (
            f"No router is surely better than chance here: the interval of the best, {best}, reaches from {number(apgr['low'])} to "
            f"{number(apgr['high'])}, and random routing has 0.500. More test queries would narrow it."
        )
    controls = [CONTROLS[name] for name in report["controls"].get(best, {})]
    if missed := [CONTROLS[name] for name in unbeaten(report, best)]:
        return (
            f"{best} has the highest APGR, and is better than chance, but not surely better than {' or '.join(missed)}: "
            "it may know no more of a query than that."
        )
    low, high = (report["models"][model]["all"]["pass_rate"] for model in (weak, strong))
    return (
        f"{best} routes best: with half of the queries sent to {strong} it recovers {percent_text((half - low) / (high - low), 0)} "
        f"of the gap between the models, where random routing recovers 50%. Its whole APGR interval lies above chance"
        + (f", and so does its lead over {' and over '.join(controls)}." if controls else ".")
    )


def _whisker(report: Mapping[str, Any]) -> dict[str, float]:
    """The common axis of the APGR intervals in the headline table: from below the lowest bound to above the highest."""
    metrics = [of_task["all"]["apgr"] for of_task in report["routers"].values() if "all" in of_task]
    bounds = [value for apgr in metrics for value in (apgr["low"], apgr["high"], apgr["value"]) if value is not None]
    # At least 0.45 to 0.55, so that chance is on the axis and its span is never 0.
    low, high = min([0.45, *bounds]), max([0.55, *bounds])
    return {"low": low, "span": high - low}


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+.{digits}f}"


def _points(value: float | None) -> str:
    """A difference of rates in percentage points."""
    return "–" if value is None else f"{100 * value:+.1f}"
