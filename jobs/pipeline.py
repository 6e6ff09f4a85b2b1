"""The whole way: queries -> samples -> grades -> labels -> routers -> scores -> report, each stage where the last run left it."""

from collections.abc import Callable
from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, StageResult, job, run
from firewall_ray.cluster.display import console
from firewall_ray.cluster.needs import check_cluster
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.evaluation.table import print_table
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.stages.report import load_report, run_report
from firewall_ray.stages.sample import run_sampling
from firewall_ray.stages.score import run_scoring
from firewall_ray.stages.train_router import run_training
from firewall_ray.store.layout import ArtifactStore

Stage = Callable[..., StageResult | list[StageResult]]
STAGES: dict[str, Stage] = {
    "prepare_queries": run_prepare_queries,
    "sample": run_sampling,
    "grade": run_grading,
    "label": run_labeling,
    "train_router": run_training,
    "score": run_scoring,
    "report": run_report,
}


def main(
    config: ConfigOption,
    root: RootOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    force: ForceOption = False,
    first: Annotated[
        str | None,
        typer.Option("--from", help=f"Redo this stage and those after it, keep what is before. One of: {', '.join(STAGES)}."),
    ] = None,
) -> None:
    """Run every stage in order: queries -> samples -> grades -> labels -> routers -> scores -> report.

    Finished stages are skipped, killed ones go on where they stopped. --limit applies to the queries, and so to all stages.
    """
    with job("pipeline", config, root, set_, needs_ray=True) as context:
        redo = _stages_to_redo(first, force)
        check_cluster(context.config, context.store, redo=redo)
        for number, (name, stage) in enumerate(STAGES.items(), start=1):
            console.rule(f"[bold]{number}/{len(STAGES)} {name}", align="left")
            for result in _run(stage, context.config, context.store, limit if number == 1 else None, name in redo):
                context.report(result)
        print_table(load_report(context.store.report()), console)
        console.print(f"\nThe report with its figures: {context.store.report().path}/report.html", soft_wrap=True, highlight=False)


def _run(stage: Stage, config: RunConfig, store: ArtifactStore, limit: int | None, force: bool) -> list[StageResult]:
    results = stage(config, store, limit=limit, force=force)
    return results if isinstance(results, list) else [results]


def _stages_to_redo(first: str | None, force: bool) -> set[str]:
    names = list(STAGES)
    if first is None:
        return set(names) if force else set()
    if first not in names:
        raise ConfigError(f"--from {first}: the stages are {', '.join(names)}")
    return set(names[names.index(first) :])


if __name__ == "__main__":
    run(main)
