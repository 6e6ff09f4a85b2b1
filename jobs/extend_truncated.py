"""Sample again, with more room, what was cut off and is not right, and grade it: samples/, grades/ -> samples/, grades/."""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, run, run_stage


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Sample again, with `sampling.extend_truncated` tokens, the queries with an answer that was cut off and is not right.

    All n samples of such a query are made again: to replace only those that were cut off would prefer short answers.
    --force: also of those that had this much room already.
    """
    run_stage("extend_truncated", config, root, set_, limit=limit, force=force)


if __name__ == "__main__":
    run(main)
