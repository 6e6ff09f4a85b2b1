"""Sample every query n times, and once greedily, with real engines on a Ray Data actor pool: queries/ -> samples/<model>/."""

from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RetryErrorsOption, RootOption, SetOption, run, run_stage


def main(
    config: ConfigOption,
    root: RootOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    force: ForceOption = False,
    retry_errors: RetryErrorsOption = False,
    model: Annotated[list[str] | None, typer.Option("--model", help="Key in `models`; repeatable. The pair by default.")] = None,
) -> None:
    """Sample every query n times, and once greedily: queries/ -> samples/<model>/.

    A killed job goes on where it stopped when the same command is run again. With more queries only the new ones are sampled.
    """
    run_stage("sample", config, root, set_, models=model, limit=limit, force=force, retry_errors=retry_errors)


if __name__ == "__main__":
    run(main)
