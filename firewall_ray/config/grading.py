"""The section `grading`: the rules by which completions are right."""

from typing import Literal

from pydantic import Field

from firewall_ray.config.base import Positive, Strict
from firewall_ray.config.queries import SandboxConfig


class Gsm8kGradingConfig(Strict):
    rule: Literal["official", "strict", "flexible"] = Field(
        "flexible",
        description="official: OpenAI's '#### n' and string equality; strict: lm-evaluation-harness' strict-match; flexible: its "
        "flexible-extract, the last number. Base models asked without examples do not write '####', so flexible is the default.",
    )


class HumanevalGradingConfig(SandboxConfig):
    """A completion is right when the program that it makes passes the problem's tests."""


class TriviaqaGradingConfig(Strict):
    answer: Literal["whole", "first_line"] = Field(
        "whole",
        description="What counts as the answer. whole: all of the completion, as in the official program; sampling stops at the "
        "line's end anyway. first_line: its first line that is not blank, for samples that were taken without that stop.",
    )


class GradingConfig(Strict):
    gsm8k: Gsm8kGradingConfig = Gsm8kGradingConfig()
    triviaqa: TriviaqaGradingConfig = TriviaqaGradingConfig()
    humaneval: HumanevalGradingConfig = HumanevalGradingConfig()
    batch_size: Positive = Field(256, description="Rows that a task reads and grades at once; a task grades many such batches.")
