"""Labels and scores -> paper/: the tables as Markdown, CSV and LaTeX, the figures as PNG and SVG, all of it as one page.

Rows in: labels/ and scores/ of the run, `pairs/*/labels/` and `backbones/*/scores/`; test split. For figures 3 and 4 grades/ and
`baselines/qualities*/`, where they are there. Runs in the driver: no Ray. paper.json holds every number of all of it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from firewall_ray.baselines.run import describe
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.evaluation import plots
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores, read_labels, read_scores, router_names
from firewall_ray.paper import bart_accuracy, layout, page, tables
from firewall_ray.paper.claims import HELD, Claim, check_claims
from firewall_ray.paper.curves import draw_curves
from firewall_ray.paper.figures import FigureNumbers, draw_figures, figure_numbers
from firewall_ray.paper.measured import Measured, Setting, measure
from firewall_ray.paper.published import published, same_setting
from firewall_ray.paper.rows import CAUSAL, FIRST, SECOND
from firewall_ray.paper.table import Table, comma_separated, latex, markdown
from firewall_ray.paper.targets import Compared, check_targets, targets_of
from firewall_ray.paper.variants import MARGIN_SAMPLING, BackboneStore, PairStore, pair_name
from firewall_ray.schemas import LABEL_DESIGNS
from firewall_ray.stages.report import BASELINES, build_report, without_nan
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

Report = dict[str, Any]
logger = logging.getLogger("firewall_ray")


@dataclass(frozen=True)
class Results:
    """What tables and figures are made of. measured: the rows of the paper's tables; the reports: what we add to them. pairs and
    backbones: by name, see `tables.table_2` and `table_4`."""

    measured: Measured
    report: Report
    pairs: dict[str, Report]
    backbones: dict[str, Report]
    figures: FigureNumbers
    claims: list[Claim]
    targets: list[Compared]


def run_paper(config: RunConfig, store: ArtifactStore, *, force: bool = False) -> StageResult:
    """Write paper/. Raises ArtifactMissing where labels or scores are not there, ConfigError where a router of
    `paper.routers` has no scores."""
    names = [name for name in router_names(store) if name not in BASELINES]  # the reports work these out themselves
    # One of ours without scores would only leave rows out of the tables, and nobody would miss them.
    missing = [name for name in config.paper.routers if name not in names]
    if missing:
        raise ConfigError(f"paper.routers: {missing[0]!r} has no scores under {store.root}/scores; there are {', '.join(names)}.")
    settings = _settings(config, store, names)
    dataset = store.paper()
    output = Output.plan("paper", dataset, settings, force=force, path=f"{dataset.path}/paper.html")

    def write() -> Mapping[str, Any]:
        results = collect(config, store, names)
        # Before an older paper/ is deleted: whatever is wrong with labels or scores is found by here.
        made = make_tables(results, config)
        output.begin()
        return _write(dataset, results, made, config)

    return make(config, output, write)


def load_claims(dataset: Dataset) -> list[dict[str, Any]]:
    """The finished paper.json's claims, as `claims.Claim`; NaN is None."""
    loaded: list[dict[str, Any]] = json.loads(dataset.require().read_bytes("paper.json"))["claims"]
    return loaded


# Reading -------------------------------------------------------------------------------------------------------------


def collect(config: RunConfig, store: ArtifactStore, names: list[str]) -> Results:
    """Every report, figure and claim. names: the routers under scores/ that are to be compared."""
    # What each router's last column is the difference from.
    reference = config.paper.routers[0]
    queries, validation_ids = read_labels(store, list(LABEL_DESIGNS))
    routers = [read_scores(store, name, queries, validation_ids) for name in names]
    by_name = {router.name: router for router in routers}
    pairs = {}
    settings = {FIRST: Setting(queries, by_name)}
    for pair in config.paper.pairs:
        logger.info("paper: pair %s", pair_name(pair))
        own = PairStore(store.root, pair)
        of_pair, its_validation = read_labels(own, list(LABEL_DESIGNS))
        # Table 2 is about routers that are not trained again, so scores are the run's, but for the one that reads the weak model.
        places = {name: own if name == MARGIN_SAMPLING and own.scores(name).state() != "missing" else store for name in names}
        # The other pair's labels are of the test split alone: what is calibrated on validation is calibrated on the run's.
        scores = [read_scores(place, name, of_pair, its_validation or validation_ids) for name, place in places.items()]
        pairs[pair_name(pair)] = build_report(config.model_copy(update={"pair": pair}), of_pair, scores, reference)
        if SECOND not in settings:
            # The first of them is Table 2's pair. Another weak model's margins would be another method.
            its_own = [router for router in scores if router.name != MARGIN_SAMPLING or places[MARGIN_SAMPLING] is own]
            settings[SECOND] = Setting(of_pair, {router.name: router for router in its_own})
    figures = figure_numbers(config, store, settings)
    if config.paper.backbones:
        settings[CAUSAL] = Setting(queries, _causal(config, store, queries, validation_ids))
    measured = measure(settings, config)
    return Results(
        measured=measured,
        report=build_report(config, queries, routers, reference),
        pairs=pairs,
        backbones=_backbones(config, store, queries, validation_ids) if config.paper.backbones else {},
        figures=figures,
        claims=check_claims(measured, config.evaluation),
        targets=check_targets(config, store),
    )


def _causal(
    config: RunConfig, store: ArtifactStore, queries: LabelledQueries, validation_ids: list[str]
) -> dict[str, RouterScores]:
    """By label design: the routers of the first of the other backbones."""
    place = BackboneStore(store.root, next(iter(config.paper.backbones)))
    return {design: read_scores(place, design, queries, validation_ids) for design in config.paper.backbone_designs}


def _backbones(config: RunConfig, store: ArtifactStore, queries: LabelledQueries, validation_ids: list[str]) -> dict[str, Report]:
    """By label design: the run's own backbone, which the others are compared with, and the others."""
    own = tables.backbone_name(config.router.backbone)
    stores = {own: store} | {name: BackboneStore(store.root, name) for name in config.paper.backbones}
    reports: dict[str, Report] = {}
    for design in config.paper.backbone_designs:
        # A report tells routers apart by name, and all of these are called by their design.
        scores = [replace(read_scores(place, design, queries, validation_ids), name=name) for name, place in stores.items()]
        reports[design] = build_report(config, queries, scores, own)
    return reports


def _settings(config: RunConfig, store: ArtifactStore, names: list[str]) -> dict[str, Any]:
    """What decides the content of paper/, and that its inputs are finished."""
    paper = config.paper
    stores = {name: BackboneStore(store.root, name) for name in paper.backbones}
    return {
        "labels": store.labels().require([]).identity(),
        "scores": {name: store.scores(name).require().identity() for name in names},
        "pairs": {pair_name(pair): PairStore(store.root, pair).labels().require([]).identity() for pair in paper.pairs},
        "backbones": {
            name: [place.scores(design).require().identity() for design in paper.backbone_designs] for name, place in stores.items()
        },
        "paper": paper.model_dump(mode="json", exclude={"plan", "calibration"}),
        "targets": targets_of(config),
        "evaluation": config.evaluation.model_dump(mode="json"),
        "pair": config.pair.model_dump(),
        "figures": bart_accuracy.inputs_of(store, config.pair),
        # Whether the paper's own rows are shown hangs on models and router settings, which are not among the above.
        "published": same_setting(config),
    }


# Writing -------------------------------------------------------------------------------------------------------------


def make_tables(results: Results, config: RunConfig) -> list[tuple[Table, Table, Table | None]]:
    """Tables 1 to 4: each as the paper lays it out, the paper's own, and what we add (None where the run has nothing to add)."""
    titles = {name: describe(name, config) for name in results.report["bins"]}
    extended = {"table_1": tables.table_1(results.report, config.paper, titles), "table_3": tables.table_3(results.report)}
    if results.pairs:
        extended["table_2"] = tables.table_2(results.pairs, config.paper, titles, trained_on=pair_name(config.pair))
    if results.backbones:
        extended["table_4"] = tables.table_4(results.backbones)
    return [
        (layout.ours(name, results.measured, config), layout.theirs(name, config), extended.get(name)) for name in published().rows
    ]


def _write(dataset: Dataset, results: Results, made: list[tuple[Table, Table, Table | None]], config: RunConfig) -> dict[str, int]:
    for ours, theirs, extended in made:
        dataset.write_bytes(f"{ours.name}.csv", layout.side_by_side(ours, theirs).encode())
        dataset.write_bytes(f"{ours.name}.tex", latex(ours).encode())
        if extended is not None:
            dataset.write_bytes(f"{extended.name}.csv", comma_separated(extended).encode())
            dataset.write_bytes(f"{extended.name}.tex", latex(extended).encode())
    every = [table for of_number in made for table in of_number if table is not None]
    dataset.write_bytes("tables.md", "\n\n".join(markdown(table) for table in every).encode())
    figures, curves = draw_figures(results.figures, config), draw_curves(results.report, results.pairs, config.paper)
    vectors = {}
    for drawing in (*figures, *curves):
        if drawing.figure is not None:
            dataset.write_bytes(f"{drawing.name}.png", plots.png(drawing.figure))
            vectors[drawing.name] = plots.svg(drawing.figure)
    dataset.write_bytes(
        "paper.html", page.render(every, figures, curves, vectors, results.claims, results.targets, config).encode()
    )
    numbers = {
        "claims": [asdict(claim) for claim in results.claims],
        "targets": [asdict(row) for row in results.targets],
        "report": results.report,
        "pairs": results.pairs,
        "backbones": results.backbones,
        "figures": results.figures.rows,
        "figures_left_out": results.figures.missing,
    }
    # allow_nan=False: Python would write NaN, which is no JSON, and other languages' readers refuse the file.
    dataset.write_bytes("paper.json", json.dumps(without_nan(numbers), indent=2, allow_nan=False).encode())
    held = sum(claim.verdict == HELD for claim in results.claims)
    return {"tables": len(made), "figures": len(results.figures.rows), "claims": len(results.claims), "claims_that_hold": held}
