"""Labels and scores -> paper/: the tables as Markdown, CSV and LaTeX, the figures as PNG and SVG, all of it as one page.

Rows in: labels/ and scores/ of the run, `pairs/*/labels/` and `backbones/*/scores/`; test split. Runs in the driver: no Ray.
paper.json holds every number of the tables and the claims.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from firewall_ray.baselines.run import describe
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.evaluation import plots
from firewall_ray.evaluation.bins import binned
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores, read_labels, read_scores, router_names
from firewall_ray.paper import page, tables
from firewall_ray.paper.claims import Claim, check_claims
from firewall_ray.paper.figures import draw_figures
from firewall_ray.paper.published import same_setting
from firewall_ray.paper.table import Table, comma_separated, latex, markdown
from firewall_ray.paper.targets import Compared, check_targets, targets_of
from firewall_ray.paper.variants import MARGIN_SAMPLING, BackboneStore, PairStore, pair_name
from firewall_ray.schemas import LABEL_DESIGNS
from firewall_ray.stages.report import BASELINES, build_report, without_nan
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

Report = dict[str, Any]
RIVAL = "weak_pass_rate"  # what blocking has to beat: the router that only asks whether the weak model fails
logger = logging.getLogger("firewall_ray")


@dataclass(frozen=True)
class Results:
    """What tables and figures are made of. pairs and backbones: by name, see `tables.table_2` and `table_4`."""

    report: Report
    pairs: dict[str, Report]
    backbones: dict[str, Report]
    bins: dict[str, dict[str, list[dict[str, Any]]]]
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
    """Every report, bin and claim. names: the routers under scores/ that are to be compared."""
    # What each router's last column is the difference from.
    reference = config.paper.routers[0]
    queries, validation_ids = read_labels(store, list(LABEL_DESIGNS))
    routers = [read_scores(store, name, queries, validation_ids) for name in names]
    by_name = {router.name: router for router in routers}
    pairs = {}
    for pair in config.paper.pairs:
        logger.info("paper: pair %s", pair_name(pair))
        own = PairStore(store.root, pair)
        of_pair, its_validation = read_labels(own, list(LABEL_DESIGNS))
        # Table 2 is about routers that are not trained again, so scores are the run's, but for the one that reads the weak model.
        places = {name: own if name == MARGIN_SAMPLING and own.scores(name).state() != "missing" else store for name in names}
        scores = [read_scores(place, name, of_pair, its_validation) for name, place in places.items()]
        pairs[pair_name(pair)] = build_report(config.model_copy(update={"pair": pair}), of_pair, scores, reference)
    ours = [by_name[name] for name in config.paper.routers]
    # A claim is about all test queries, on the same resamples; a router that left a task out has NaN among its scores.
    complete = [router for router in ours if len(router.tasks) == len(queries.task_names())]
    return Results(
        report=build_report(config, queries, routers, reference),
        pairs=pairs,
        backbones=_backbones(config, store, queries, validation_ids) if config.paper.backbones else {},
        bins=_bins(queries, by_name, config.evaluation.num_bins),
        claims=check_claims(queries, complete, by_name.get(RIVAL), config.evaluation),
        targets=check_targets(config, store),
    )


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


def _bins(
    queries: LabelledQueries, routers: Mapping[str, RouterScores], num_bins: int
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for design in [design for design in LABEL_DESIGNS if design in routers]:
        router = routers[design]
        found[design] = {}
        for task in sorted(router.tasks):
            rows = np.flatnonzero(queries.tasks == task)
            # float64, (num_queries of the task,), in [0, 1], as are the scores and labels below.
            rates = queries.pass_rate_weak[rows], queries.pass_rate_strong[rows]
            found[design][task] = without_nan(binned(router.p_weak[rows], *rates, queries.labels[design][rows], num_bins))
    return found


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
        # Whether the paper's own rows are shown hangs on models and router settings, which are not among the above.
        "published": same_setting(config),
    }


# Writing -------------------------------------------------------------------------------------------------------------


def make_tables(results: Results, config: RunConfig) -> list[Table]:
    """Tables 1 to 4; 2 and 4 where the config names other pairs and backbones."""
    titles = {name: describe(name, config) for name in results.report["bins"]}
    made = [tables.table_1(results.report, config.paper, titles, with_published=same_setting(config))]
    if results.pairs:
        made.append(tables.table_2(results.pairs, config.paper, titles, trained_on=pair_name(config.pair)))
    made.append(tables.table_3(results.report))
    if results.backbones:
        made.append(tables.table_4(results.backbones))
    return made


def _write(dataset: Dataset, results: Results, made: list[Table], config: RunConfig) -> dict[str, int]:
    for table in made:
        dataset.write_bytes(f"{table.name}.csv", comma_separated(table).encode())
        dataset.write_bytes(f"{table.name}.tex", latex(table).encode())
    dataset.write_bytes("tables.md", "\n\n".join(markdown(table) for table in made).encode())
    drawn = draw_figures(results.report, results.pairs, results.bins, config.paper)
    vectors = {}
    for figure in drawn:
        dataset.write_bytes(f"{figure.stem}.png", plots.png(figure.figure))
        vectors[figure.number] = plots.svg(figure.figure)
    dataset.write_bytes("paper.html", page.render(made, drawn, vectors, results.claims, results.targets, config).encode())
    numbers = {
        "claims": [asdict(claim) for claim in results.claims],
        "targets": [asdict(row) for row in results.targets],
        "report": results.report,
        "pairs": results.pairs,
        "backbones": results.backbones,
        "bins": results.bins,
    }
    # allow_nan=False: Python would write NaN, which is no JSON, and other languages' readers refuse the file.
    dataset.write_bytes("paper.json", json.dumps(without_nan(numbers), indent=2, allow_nan=False).encode())
    held = sum(claim.holds for claim in results.claims)
    return {"tables": len(made), "figures": len(drawn), "claims": len(results.claims), "claims_that_hold": held}
