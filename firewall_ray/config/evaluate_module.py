"""What a module of Hugging Face's `evaluate` is asked for: by a task's grader, and by the report."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from firewall_ray.config.base import Name, Strict

NO_PROGRAMS = "code_eval executes the models' programs with nothing around them. `grader: code` runs them in the sandbox"


def runs_programs(module: str) -> bool:
    """Whether this is `evaluate`'s module that executes what a model wrote, wherever it lies.

    >>> [runs_programs(module) for module in ("code_eval", "my/code_eval/code_eval.py", "my.code_eval", "rouge")]
    [True, True, True, False]
    """
    return re.split(r"[/.]", module.rstrip("/").removesuffix(".py"))[-1] == "code_eval"


class EvaluateOptions(Strict):
    key: str | None = Field(
        None,
        description="Which number of the module's result is the score, such as rougeL. None: the only one, or that of its name.",
    )
    arguments: dict[str, Any] = Field(
        {}, description="What else its `compute` takes by name, such as {ignore_case: true}; its own page says what there is."
    )


class EvaluateGraderOptions(EvaluateOptions):
    """For `grader: evaluate:<module>`."""

    threshold: float = Field(
        1.0,
        description="A completion is right when its score is this or more, on the module's own scale: exact_match gives 0 or 1, "
        "rouge 0 to 1, sacrebleu 0 to 100.",
    )


class AnswerMetricConfig(EvaluateOptions):
    """A module of `evaluate` over the models' greedy answers to the test queries."""

    module: str | None = Field(
        None,
        description="Its name on the hub, its folder, its .py file, or its package with dots. None: as the metric is called.",
    )
    tasks: list[Name] | None = Field(
        None, description="Tasks that it makes sense for. None: all whose references are texts; others are left out with a notice."
    )


def _run_no_programs(metrics: dict[str, AnswerMetricConfig]) -> dict[str, AnswerMetricConfig]:
    for name, metric in metrics.items():
        if runs_programs(metric.module or name):
            raise ValueError(f"{name}: {NO_PROGRAMS}, and its verdicts are the pass rates of the report")
    return metrics


AnswerMetrics = Annotated[dict[Name, AnswerMetricConfig], AfterValidator(_run_no_programs)]
