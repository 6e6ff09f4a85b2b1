"""The whole way: queries -> samples -> grades -> labels -> routers -> scores -> report, each stage where the last run left it."""

from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RetryErrorsOption, RootOption, SetOption, job, run
from firewall_ray.cluster.display import console
from firewall_ray.errors import ConfigError
from firewall_ray.evaluation.table import load_report, print_table
from firewall_ray.stages import PIPELINE, load_stage


def main(
    config: ConfigOption,
    root: RootOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    force: ForceOption = False,
    first: Annotated[
        str | None,
        typer.Option("--from", help=f"Redo this stage and those after it, keep what is before. One of: {', '.join(PIPELINE)}."),
    ] = None,
    retry_errors: RetryErrorsOption = False,
    controls: Annotated[bool, typer.Option("--controls", help="Before the report, do what its --controls does.")] = False,
) -> None:
    """Run every stage in order: queries -> samples -> grades -> labels -> routers -> scores -> report.

    Finished stages are skipped, killed ones go on where they stopped. --limit applies to the queries, and so to all stages.
    --retry-errors changes labels: where routers were trained on the old ones, the run stops there unless --from train_router
    is given too.
    """
    # Without `writes` it claims all of ROOT: its stages use every folder.
    with job("pipeline", config, root, set_, needs_ray=True) as context:
        redo = _stages_to_redo(first, force)
        from firewall_ray.stages.needs import check_cluster  # seconds to import

        # Before the first stage: a router that no node can train should not show after days of sampling.
        check_cluster(context.config, context.store, redo=redo)
        for number, verb in enumerate(PIPELINE, start=1):
            console.rule(f"[bold]{number}/{len(PIPELINE)} {verb}", align="left")
            if verb == "report" and controls:
                # It is a router, and made again where the routers are.
                for result in load_stage("control_shuffled").results(context.config, context.store, force="train_router" in redo):
                    context.report(result)
            options = {"limit": limit if number == 1 else None, "force": verb in redo, "retry_errors": retry_errors}
            for result in load_stage(verb).results(context.config, context.store, **options):
                context.report(result)
        print_table(load_report(context.store.report()), console)
        console.print(f"\nThe report with its figures: {context.store.report().path}/report.html", soft_wrap=True, highlight=False)


def _stages_to_redo(first: str | None, force: bool) -> set[str]:
    names = list(PIPELINE)
    if first is None:
        return set(names) if force else set()
    if first not in names:
        raise ConfigError(f"--from {first}: the stages are {', '.join(names)}")
    return set(names[names.index(first) :])


if __name__ == "__main__":
    run(main)
