"""Labels and scores -> report/: metrics with intervals, figures, and a page to read them on."""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, job, run
from firewall_ray.cluster.display import console
from firewall_ray.evaluation.table import load_report, print_table
from firewall_ray.stages import load_stage


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Evaluate every router under ROOT/scores on the labelled test queries; write ROOT/report with report.html.

    Needs labels/ and scores/ alone, whoever wrote them, and no Ray; with grades/ it also says what queries are blocked for. --limit
    keeps the first N test queries.
    """
    stage = load_stage("report")
    with job("report", config, root, set_, needs_ray=False, reads=stage.reads, writes=stage.writes) as context:
        # Not `run_stage`: the table is printed before the result.
        (result,) = stage.results(context.config, context.store, limit=limit, force=force)
        print_table(load_report(context.store.report()), console)
        context.report(result)


if __name__ == "__main__":
    run(main)
