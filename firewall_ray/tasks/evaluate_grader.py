"""The grader `evaluate:<module>`: a completion is right when a module of Hugging Face's `evaluate` gives it `threshold` or more.

Options: the task's `evaluate`, see `EvaluateGraderOptions`. Runs in workers, which load the module once each; in the driver when
queries are prepared, where the module is tried once, so that a wrong key costs no sampling.
"""

import math
from collections.abc import Mapping
from typing import Any

from firewall_ray.config.evaluate_module import EvaluateGraderOptions
from firewall_ray.config.queries import EVALUATE
from firewall_ray.errors import TaskError
from firewall_ray.tasks.evaluate_module import TextModule, load_text_module
from firewall_ray.tasks.graders import EVALUATE_VERDICT_S, Grader


def evaluate_grader(name: str) -> Grader:
    """name: `evaluate:<module>`. Raises TaskError where the module cannot be used."""
    module = load_text_module(name.removeprefix(EVALUATE), f"grader: {name!r}")

    def problem(reference: Any) -> str | None:
        texts = texts_of(reference)
        if module.references is not None and not (texts and all(text.strip() for text in texts)):
            return "must be a text, or a list of texts of which each is right"
        return None

    def is_right(completion: str, reference: Any, options: Mapping[str, Any]) -> bool:
        # Nothing was answered. Some modules divide by an answer's length (bleu).
        if not completion.strip():
            return False
        if (wrong := problem(reference)) is not None:  # in queries/ that another program wrote
            raise ValueError(f"its reference {wrong}, there is {reference!r:.60}")
        asked = _asked(options)
        score = _score(module, completion, reference, asked)
        if math.isnan(score):
            raise ValueError(f"{name} gives NaN")
        return score >= asked.threshold

    def try_out(reference: Any, options: Mapping[str, Any]) -> None:
        # Its own reference is an answer that every module should have something to say about.
        answer = next(iter(texts_of(reference)), "answer")
        try:
            _score(module, answer, reference, _asked(options))
        except TaskError:
            raise
        except Exception as e:  # The module's own, such as of an argument that it does not know.
            raise TaskError(
                f"{module.where}: the module fails on a query's own reference: {type(e).__name__}: {e}. Look at "
                "`evaluate.arguments`, and at what its page says of inputs."
            ) from e

    return Grader(problem, is_right, EVALUATE_VERDICT_S, try_out=try_out)


def texts_of(reference: Any) -> list[str]:
    """The texts that are right, of a reference that is a text, a number, or a list of them; empty where it is anything else.

    >>> texts_of("Paris"), texts_of([18, "18.0"]), texts_of({"x": 1}), texts_of([])
    (['Paris'], ['18', '18.0'], [], [])
    """
    values = reference if isinstance(reference, list) else [reference]
    # A bool is an int to Python.
    usable = all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values)
    return [str(value) for value in values] if usable else []


def _asked(options: Mapping[str, Any]) -> EvaluateGraderOptions:
    return EvaluateGraderOptions.model_validate(options["evaluate"] or {})


def _score(module: TextModule, completion: str, reference: Any, asked: EvaluateGraderOptions) -> float:
    texts = texts_of(reference)
    # A module that takes one reference is asked about each, and the best counts: any of them is right.
    several = [texts] if module.references != "text" else [[text] for text in texts]
    results = (module.compute([completion], [each], asked.arguments) for each in several)
    return max(module.score(result, asked.key) for result in results)
