"""The paper's tables 1 to 4 and figures 3 to 18, in one command; --plan says what they cost, --dry-run what would fail.

--calibrate says which settings bring the weak model's pass rates near the paper's.
"""

import os
from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, LimitOption, RootOption, SetOption, job, run
from firewall_ray.cluster.display import console
from firewall_ray.errors import ConfigError
from firewall_ray.store.leases import WHOLE_ROOT

PlanOption = Annotated[
    bool, typer.Option("--plan", help="Only print queries, generations, tokens and GPU-hours of every stage. Runs nothing.")
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Only look over the config and a cluster, and print what is wrong (exit code 2). Runs nothing."),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        help="With --dry-run: a YAML of the nodes, see firewall_ray/paper/described.py. Default: the Ray of RAY_ADDRESS, else "
        "ray_cluster.yaml."
    ),
]
TablesOption = Annotated[bool, typer.Option("--tables-only", help="Only tables and figures, from what is there. Needs no Ray.")]
CalibrateOption = Annotated[
    bool,
    typer.Option("--calibrate", help="Only try a small grid of settings on the weak model, and rank them by its pass rates."),
]
CalibrateQueriesOption = Annotated[
    int | None, typer.Option("--calibrate-queries", min=1, help="Of each task; above paper.calibration.num_queries.")
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Make tables and figures again although they are there. Other stages: their own jobs."),
]


def main(
    config: ConfigOption,
    root: RootOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    plan: PlanOption = False,
    dry_run: DryRunOption = False,
    cluster: ClusterOption = None,
    tables_only: TablesOption = False,
    calibrate: CalibrateOption = False,
    calibrate_queries: CalibrateQueriesOption = None,
    force: ForceOption = False,
) -> None:
    """Run what the tables need (sampling to scoring, other pairs, baselines, other backbones), then write ROOT/paper.

    Finished stages are skipped, killed ones go on where they stopped. ROOT/paper has the tables as Markdown, CSV and LaTeX,
    the figures as PNG, and paper.html with all of it.
    """
    # A plan claims nothing, so that it can be made while a job runs.
    writes = [] if plan or dry_run else [WHOLE_ROOT]
    joins_running = cluster is None and "RAY_ADDRESS" in os.environ
    needs_ray = joins_running if dry_run else not (plan or tables_only)
    with job("paper", config, root, set_, needs_ray=needs_ray, writes=writes) as context:
        # Seconds to import, which --help need not wait for.
        from firewall_ray.baselines.run import check_key
        from firewall_ray.paper.artifact import load_claims, run_paper
        from firewall_ray.paper.calibration import run_calibration
        from firewall_ray.paper.plan import make_plan
        from firewall_ray.paper.show import print_claims, print_plan
        from firewall_ray.paper.show_targets import print_calibration, print_targets
        from firewall_ray.paper.stages import steps
        from firewall_ray.paper.targets import check_targets, warn_of_distance
        from firewall_ray.paper.variants import other_models
        from firewall_ray.stages.needs import check_cluster

        if plan:
            made = make_plan(context.config, context.store)
            print_plan(made, console)
            context.results.append(made.summary())
            return
        if calibrate:
            calibrated, results = run_calibration(context.config, context.store, num_queries=calibrate_queries)
            for result in results:
                context.report(result)
            print_calibration(calibrated, console)
            return
        if dry_run:
            from firewall_ray.paper import dry_run as walk
            from firewall_ray.paper.described import LAUNCHER_FILE, described_cluster, running_cluster
            from firewall_ray.paper.show import print_checks

            nodes = running_cluster() if joins_running else described_cluster(cluster or LAUNCHER_FILE)
            findings = walk.dry_run(context.config, context.store, nodes)
            print_checks(findings, console)
            wrong = [finding.what for finding in findings if finding.state == "wrong"]
            if wrong:
                raise ConfigError(f"--dry-run: {len(wrong)} of {len(findings)} checks are wrong: {', '.join(wrong)}.")
            context.results.append({"stage": "dry_run", "checks": [finding._asdict() for finding in findings]})
            return
        if not tables_only:
            check_key(context.config)
            check_cluster(context.config, context.store, others=other_models(context.config))
        todo = {} if tables_only else steps()
        for number, (name, step) in enumerate(todo.items(), start=1):
            console.rule(f"[bold]{number}/{len(todo)} {name}", align="left")
            # --limit applies to the queries, and so to all that follows.
            options = {"limit": limit} if name == "prepare_queries" else {}
            for result in step(context.config, context.store, **options):
                context.report(result)
            if name == "grade":
                compared = check_targets(context.config, context.store)
                print_targets(compared, console)
                warn_of_distance(compared)
        context.report(run_paper(context.config, context.store, force=force))
        print_claims(load_claims(context.store.paper()), console)
        console.print(f"\nTables and figures: {context.store.paper().path}/paper.html", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    run(main)
