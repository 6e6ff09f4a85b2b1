"""samples/ and queries/ -> grades/: python jobs/grade.py --config FILE"""

from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RetryErrorsOption, RootOption, SetOption, run, run_stage

ModelOption = Annotated[list[str] | None, typer.Option("--model", help="Key in `models`; repeatable. The pair by default.")]


def main(
    config: ConfigOption,
    root: RootOption = None,
    set_: SetOption = None,
    model: ModelOption = None,
    limit: LimitOption = None,
    force: ForceOption = False,
    retry_errors: RetryErrorsOption = False,
) -> None:
    """Grade every completion of the models' samples by the rules of their tasks."""
    run_stage("grade", config, root, set_, models=model, limit=limit, force=force, retry_errors=retry_errors)


if __name__ == "__main__":
    run(main)
