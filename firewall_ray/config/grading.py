"""The section `grading`: the rules by which completions are right."""

from typing import Literal

from pydantic import Field

from firewall_ray.config.base import Positive, Strict
from firewall_ray.config.queries import SandboxConfig

Gsm8kRule = Literal["official", "strict", "flexible", "final"]


class Gsm8kGradingConfig(Strict):
    rule: Gsm8kRule = Field(
        "flexible",
        description="official: OpenAI's '#### n' and string equality; strict: lm-evaluation-harness' strict-match; flexible: its "
        "flexible-extract, the last number. Base models asked without examples do not write '####', so flexible is the default. "
        "final, no published rule, is for chat models: the number marked last, by \\boxed or 'the answer is', else the last one.",
    )


class HumanevalGradingConfig(SandboxConfig):
    """A completion is right when the program that it makes passes the problem's tests."""


class TriviaqaGradingConfig(Strict):
    match: Literal["exact", "contains"] = Field(
        "exact",
        description="exact: the answer is an alias, the official rule. contains: its first line holds one as whole words; for chat "
        "models, which answer in sentences. Agreement of both with people: benchmarks/triviaqa_agreement.py.",
    )
    answer: Literal["whole", "first_line"] = Field(
        "whole",
        description="What counts as the answer of an exact match. whole: all of the completion, as in the official program; "
        "sampling stops at the line's end anyway. first_line: its first line that is not blank, for samples without that stop.",
    )


class GradingConfig(Strict):
    gsm8k: Gsm8kGradingConfig = Gsm8kGradingConfig()
    triviaqa: TriviaqaGradingConfig = TriviaqaGradingConfig()
    humaneval: HumanevalGradingConfig = HumanevalGradingConfig()
    batch_size: Positive = Field(256, description="Rows that a task reads and grades at once; a task grades many such batches.")
