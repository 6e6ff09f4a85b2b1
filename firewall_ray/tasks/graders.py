"""The graders that a user's own task can name: is an answer right, by the reference of its row?

* ``exact``: the answer equals the reference, or one of a list of them, both without surrounding white space; accents may be
  composed or not, and a reference that is no text is compared as JSON writes it (``true``, ``18``);
* ``numeric``: the answer's final number is the reference's number, see `numbers`: 18, 18.0, $18 and 1.8e1 are one number;
* ``regex``: the reference, a pattern, is found in the answer (anchor it where it must be all of it);
* ``code``: the answer's code, see `code_answer`, runs with the reference, a text of Python tests, to its end without an exception;
* ``evaluate:module``: a module of Hugging Face's `evaluate` gives the answer a score of the task's threshold or more; see
  `evaluate_grader.py`;
* ``judge``: a model says that it is, with the reference or without one (`judged.py`);
* ``package.module:function``: a function of yours, ``(answer: str, reference) -> bool``, with the reference as it is.

An answer is a completion less the model's thoughts. Each grader says what a reference must be, which is checked when the queries
are prepared, what is right, and whether it can read an answer at all.
"""

import importlib
import json
import string
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import regex

from firewall_ray.config.queries import EVALUATE
from firewall_ray.errors import TaskError
from firewall_ray.sandbox.program import PASSED, Limits
from firewall_ray.sandbox.sandbox import shared_sandbox
from firewall_ray.tasks.base import PROGRAM_VERDICT_S, VERDICT_S
from firewall_ray.tasks.code_answer import find_program, is_code, names_read, parses, with_backticks
from firewall_ray.tasks.judged import JUDGED_VERDICT_S, has_judged_answer, is_judged_right, judged_problem
from firewall_ray.tasks.numbers import final_number, same_number, whole_number
from firewall_ray.tasks.refusals import is_refusal

FUNCTION_VERDICT_S = 1e-3  # nobody knows; between a comparison and a program
EVALUATE_VERDICT_S = 5e-3  # `evaluate` takes some milliseconds for any call of any module
SECONDS_PER_PATTERN = 5.0  # A pattern that backtracks for ever must not hold a worker for ever.


def _is_something(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    return bool(answer.strip())


class Grader(NamedTuple):
    """problem: of a reference, what is wrong with it, or None. is_right: of an answer, a reference and the task's options.

    verdict_s: see `Task`. has_answer: of the same as is_right, whether there is anything to be right or wrong; never raises.
    try_out: of one query's reference and the task's options, before any is written: raises TaskError where no answer could be
    graded with them.
    """

    problem: Callable[[Any], str | None]
    is_right: Callable[[str, Any, Mapping[str, Any]], bool]
    verdict_s: float = VERDICT_S
    has_answer: Callable[[str, Any, Mapping[str, Any]], bool] = _is_something
    try_out: Callable[[Any, Mapping[str, Any]], None] = lambda reference, options: None


def get_grader(name: str) -> Grader:
    """The grader of a config's `grader`. Raises TaskError where a function cannot be imported, or a module not be loaded."""
    if name.startswith(EVALUATE):
        from firewall_ray.tasks.evaluate_grader import evaluate_grader  # which makes a `Grader`

        return evaluate_grader(name)
    return GRADERS[name] if name in GRADERS else _function_grader(name)


def verdict_s(name: str) -> float:
    """Of a config's `grader`, without importing a function's module, which may be there on the cluster alone."""
    if name.startswith(EVALUATE):
        return EVALUATE_VERDICT_S
    return GRADERS[name].verdict_s if name in GRADERS else FUNCTION_VERDICT_S


# exact ---------------------------------------------------------------------------------------------------------------


def _exact_problem(reference: Any) -> str | None:
    answers = _answers(reference)
    if not answers or not all(isinstance(answer, str | int | float) and _plain(answer) for answer in answers):
        return "must be a text, or a list of texts of which each is right"
    return None


def _exact(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    answers = _answers(reference)
    # A model writes JSON's true as Python does, too.
    is_truth = any(isinstance(each, bool) and _plain(answer).casefold() == _plain(each) for each in answers)
    return is_truth or _plain(answer) in map(_plain, answers)


def _says_something(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    return bool(_plain(answer)) and not is_refusal(answer)


def _answers(reference: Any) -> list[Any]:
    return reference if isinstance(reference, list) else [reference]


def _plain(answer: Any) -> str:
    # NFC: one text has two spellings in Unicode. NFKC would go on to make x² and x2 one.
    text = unicodedata.normalize("NFC", answer if isinstance(answer, str) else json.dumps(answer, default=str))
    return text.strip(_INVISIBLE + string.whitespace).strip()


_INVISIBLE = "\ufeff\u200b"  # a byte order mark and a space of no width, which are no white space to Python


# numeric -------------------------------------------------------------------------------------------------------------


def _numeric_problem(reference: Any) -> str | None:
    # True is an int to Python.
    if isinstance(reference, bool) or not isinstance(reference, str | int | float) or whole_number(str(reference)) is None:
        return "must be a number"
    return None


def _numeric(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    return same_number(final_number(answer), whole_number(str(reference)))


def _has_number(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    return final_number(answer) is not None


# regex ---------------------------------------------------------------------------------------------------------------


def _regex_problem(reference: Any) -> str | None:
    if not isinstance(reference, str) or not reference:
        return "must be a pattern"
    try:
        regex.compile(reference)
    except regex.error as e:
        return f"must be a pattern: {e}"
    return None


def _regex(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    """Raises TimeoutError for a pattern that takes too long, which becomes the row's error: it says nothing of the model."""
    # The package `regex`, since `re` has no timeout.
    return regex.search(reference, answer, timeout=SECONDS_PER_PATTERN) is not None


# code ----------------------------------------------------------------------------------------------------------------


def _code_problem(reference: Any) -> str | None:
    if not isinstance(reference, str) or not reference.strip():
        return "must be Python that raises when the code before it is wrong"
    try:
        # Compiled only, here in the driver; it is run in the sandbox alone.
        compile(reference, "tests", "exec")
    except (SyntaxError, ValueError) as e:
        return f"must be Python: {e}"
    return None


def _code(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    """Raises SandboxUnavailable where this machine does not allow the isolation asked for."""
    sandbox = options["sandbox"]
    limits = Limits(sandbox["timeout_s"], sandbox["memory_mib"], sandbox["scratch_mib"])
    text = with_backticks(answer)
    code = answer if parses(text, as_module=True) else find_program(text, names_read(reference))
    return shared_sandbox(limits, sandbox["isolation"]).run(f"{code or answer}\n{reference}") == PASSED


def _has_code(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
    return is_code(answer)


# A function ----------------------------------------------------------------------------------------------------------


def _function_grader(name: str) -> Grader:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise TaskError(
            f"grader: {name!r} cannot be imported: {e}. Write package.module:function, of a module that every node can import: "
            "installed, or below the folder that the job is started in (with PYTHONPATH=.)."
        ) from e
    if not callable(function):
        raise TaskError(f"grader: {name!r} is {type(function).__name__}, must be a function (completion, reference) -> bool.")

    def is_right(answer: str, reference: Any, options: Mapping[str, Any]) -> bool:
        verdict = function(answer, reference)
        if not isinstance(verdict, bool | np.bool_):  # "no" and 0.3 are true to Python
            raise TypeError(f"{name} must return True or False, it returned {verdict!r:.60}")
        return bool(verdict)

    return Grader(lambda reference: "must be there" if reference is None else None, is_right)


GRADERS: dict[str, Grader] = {
    "exact": Grader(_exact_problem, _exact, has_answer=_says_something),
    "numeric": Grader(_numeric_problem, _numeric, has_answer=_has_number),
    "regex": Grader(_regex_problem, _regex),
    "code": Grader(_code_problem, _code, PROGRAM_VERDICT_S, _has_code),
    "judge": Grader(judged_problem, is_judged_right, JUDGED_VERDICT_S, has_judged_answer),
}
