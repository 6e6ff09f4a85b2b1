"""Tasks -> queries/: python jobs/prepare_queries.py --config FILE"""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, run, run_stage


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Write the queries of the config's tasks to ROOT/queries. --limit keeps so many in all, some of every split."""
    run_stage("prepare_queries", config, root, set_, limit=limit, force=force)


if __name__ == "__main__":
    run(main)
