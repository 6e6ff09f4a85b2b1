"""Tasks -> queries/: python jobs/prepare_queries.py --config FILE"""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, job, run
from firewall_ray.stages.prepare_queries import run_prepare_queries


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Write the queries of the config's tasks to ROOT/queries. --limit keeps so many in all, some of every split."""
    with job("prepare_queries", config, root, set_, needs_ray=False, writes=["queries"]) as context:
        context.report(run_prepare_queries(context.config, context.store, limit=limit, force=force))


if __name__ == "__main__":
    run(main)
