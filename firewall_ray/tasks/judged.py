"""The grader `judge`: a verdict that a model gave beforehand, for a batch of rows at once (`stages/judging.py`).

`options["judged"]` holds, of the row that is graded, `(verdict, error)` of each answer: a completion without its thoughts.
"""

from collections.abc import Mapping
from typing import Any

JUDGED_VERDICT_S = 0.03  # a call of a second or so, some 32 of them in flight


class NotJudged(Exception):
    """The judge gave no verdict on an answer; the row has an error that says why."""


def judged_problem(reference: Any) -> str | None:
    """Of a reference: none, since a judge reads whatever is there, and judges without where nothing is."""
    return None


def is_judged_right(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    return _verdict(answer, options) == "right"


def has_judged_answer(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    return _verdict(answer, options) != "no_answer"


def _verdict(answer: str, options: Mapping[str, Any]) -> str:
    judged = options.get("judged")
    if judged is None:
        raise NotJudged("nobody asked the judge; jobs/grade.py and jobs/relabel.py do")
    verdict, error = judged[answer]
    if error is not None:
        raise NotJudged(error)
    return str(verdict)
