"""Labels and scores -> report/: metrics with intervals, figures, and a page to read them on."""

from contextlib import ExitStack
from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, job, run
from firewall_ray.cluster.display import console
from firewall_ray.evaluation.table import load_report, print_table
from firewall_ray.stages import load_stage
from firewall_ray.store.leases import lease

ControlsOption = Annotated[
    bool,
    typer.Option("--controls", help="First train a router on shuffled labels, to compare the others with. Needs Ray."),
]


def main(
    config: ConfigOption,
    root: RootOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    force: ForceOption = False,
    controls: ControlsOption = False,
) -> None:
    """Evaluate every router under ROOT/scores on the labelled test queries; write ROOT/report with report.html.

    Needs labels/ and scores/ alone, whoever wrote them, and no Ray. With grades/ it also says what queries are blocked for; with
    evaluation.metrics it reads queries/ and samples/ too. --limit
    keeps the first N test queries.
    """
    stage, shuffled = load_stage("report"), load_stage("control_shuffled") if controls else None
    reads, writes = stage.reads, stage.writes
    if shuffled is not None:
        reads, writes = (*reads, *shuffled.reads), (*writes, *shuffled.writes)
    with job("report", config, root, set_, needs_ray=controls, reads=reads, writes=writes) as context, ExitStack() as stack:
        # Apart from the job's own, since a report without metrics need not wait for a model that is being sampled.
        if context.config.evaluation.metrics:
            stack.enter_context(lease(context.store, "report", reads=("queries", "samples")))
        if shuffled is not None:
            for result in shuffled.results(context.config, context.store, force=force):
                context.report(result)
        # Not `run_stage`: the table is printed before the result.
        (result,) = stage.results(context.config, context.store, limit=limit, force=force)
        print_table(load_report(context.store.report()), console)
        context.report(result)


if __name__ == "__main__":
    run(main)
