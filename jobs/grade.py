"""samples/ and queries/ -> grades/: python jobs/grade.py --config FILE"""

from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RetryErrorsOption, RootOption, SetOption, job, run
from firewall_ray.stages.grade import run_grading

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
    samples, grades = ([f"{folder}/{key}" for key in model or ()] or [folder] for folder in ("samples", "grades"))
    with job("grade", config, root, set_, needs_ray=True, reads=["queries", *samples], writes=grades) as context:
        results = run_grading(context.config, context.store, models=model, limit=limit, force=force, retry_errors=retry_errors)
        for result in results:
            context.report(result)


if __name__ == "__main__":
    run(main)
