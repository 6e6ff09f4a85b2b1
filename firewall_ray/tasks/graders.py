"""The graders that a user's own task can name: is a completion right, by the reference of its row?

* ``exact``: the completion equals the reference, or one of a list of them, both without surrounding white space;
* ``numeric``: the last number in the completion is the reference's number: 18, 18.0, $18 and 1.8e1 are one number;
* ``regex``: the reference, a pattern, is found in the completion (anchor it where it must be all of it);
* ``code``: the completion's code runs with the reference, a text of Python tests, to its end without an exception;
* ``package.module:function``: a function of yours, ``(completion: str, reference) -> bool``, with the reference as it is.

Each is a pair: what a reference must be, which is checked when the queries are prepared, and the verdict.
"""

import importlib
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import regex

from firewall_ray.errors import TaskError
from firewall_ray.sandbox.program import PASSED, Limits
from firewall_ray.sandbox.sandbox import shared_sandbox
from firewall_ray.tasks.base import PROGRAM_VERDICT_S, VERDICT_S
from firewall_ray.tasks.code_answer import find_program, names_read, parses, with_backticks

FUNCTION_VERDICT_S = 1e-3  # nobody knows; between a comparison and a program
SECONDS_PER_PATTERN = 5.0  # A pattern that backtracks for ever must not hold a worker for ever.

_NUMBER = regex.compile(r"-?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")


class Grader(NamedTuple):
    """problem: of a reference, what is wrong with it, or None. is_right: of a completion, a reference and the task's options.

    verdict_s: see `Task`.
    """

    problem: Callable[[Any], str | None]
    is_right: Callable[[str, Any, Mapping[str, Any]], bool]
    verdict_s: float = VERDICT_S


def get_grader(name: str) -> Grader:
    """The grader of a config's `grader`. Raises TaskError where a function cannot be imported."""
    return GRADERS[name] if name in GRADERS else _function_grader(name)


def verdict_s(name: str) -> float:
    """Of a config's `grader`, without importing a function's module, which may be there on the cluster alone."""
    return GRADERS[name].verdict_s if name in GRADERS else FUNCTION_VERDICT_S


def last_number(text: str) -> Decimal | None:
    """The last number in a text; commas between digits and a dollar sign are passed over.

    >>> last_number("That is 3 x $600, so $1,800.")
    Decimal('1800')
    """
    # Keeps the last match alone; findall would keep a list of all of a long completion's.
    last = deque(_NUMBER.finditer(text), maxlen=1)
    # Decimal: long numbers stay exact, where floats would round two of them to one.
    return Decimal(last[0].group().replace(",", "").replace("$", "")) if last else None


# exact ---------------------------------------------------------------------------------------------------------------


def _exact_problem(reference: Any) -> str | None:
    answers = _answers(reference)
    if not answers or not all(isinstance(answer, str | int) and str(answer).strip() for answer in answers):
        return "must be a text, or a list of texts of which each is right"
    return None


def _exact(completion: str, reference: Any, options: Mapping[str, Any]) -> bool:
    # str: a whole number of JSON or Parquet is a text in a completion.
    return completion.strip() in {str(answer).strip() for answer in _answers(reference)}


def _answers(reference: Any) -> list[Any]:
    return reference if isinstance(reference, list) else [reference]


# numeric -------------------------------------------------------------------------------------------------------------


def _numeric_problem(reference: Any) -> str | None:
    text = str(reference).strip()
    # True is an int to Python.
    if isinstance(reference, bool) or not isinstance(reference, str | int | float) or not _NUMBER.fullmatch(text):
        return "must be a number"
    return None


def _numeric(completion: str, reference: Any, options: Mapping[str, Any]) -> bool:
    answer = last_number(completion)
    return answer is not None and answer == last_number(str(reference).strip())


# regex ---------------------------------------------------------------------------------------------------------------


def _regex_problem(reference: Any) -> str | None:
    if not isinstance(reference, str) or not reference:
        return "must be a pattern"
    try:
        regex.compile(reference)
    except regex.error as e:
        return f"must be a pattern: {e}"
    return None


def _regex(completion: str, reference: Any, options: Mapping[str, Any]) -> bool:
    """Raises TimeoutError for a pattern that takes too long, which becomes the row's error: it says nothing of the model."""
    # The package `regex`, since `re` has no timeout.
    return regex.search(reference, completion, timeout=SECONDS_PER_PATTERN) is not None


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

    def is_right(completion: str, reference: Any, options: Mapping[str, Any]) -> bool:
        verdict = function(completion, reference)
        if not isinstance(verdict, bool | np.bool_):  # "no" and 0.3 are true to Python
            raise TypeError(f"{name} must return True or False, it returned {verdict!r:.60}")
        return bool(verdict)

    return Grader(lambda reference: "must be there" if reference is None else None, is_right)


GRADERS: dict[str, Grader] = {
    "exact": Grader(_exact_problem, _exact),
    "numeric": Grader(_numeric_problem, _numeric),
    "regex": Grader(_regex_problem, _regex),
    "code": Grader(_code_problem, _code, PROGRAM_VERDICT_S),
}
