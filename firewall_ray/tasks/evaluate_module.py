"""A module of Hugging Face's `evaluate` that judges texts: loaded once a process, and asked about answers. The one door to it.

Runs in workers, for the grader `evaluate:<module>`, and in the driver, for the report. `evaluate` takes seconds to import, since it
imports `datasets` and `pandas`, so nothing here imports it before the first module is loaded.
"""

import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firewall_ray.errors import TaskError

INPUTS = {"predictions", "references"}  # as `evaluate` calls what a model answered, and what is right


class TextModule(NamedTuple):
    """name: of its file. module: a loaded `evaluate.EvaluationModule`. Of both inputs: "text", or "texts" where each row has a list
    of them; references are None where the module takes none.
    """

    where: str
    name: str
    module: Any
    predictions: str
    references: str | None

    def compute(self, answers: Sequence[str], references: Sequence[Sequence[str]], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the module says of all answers together. references: of each answer; a single one each where it takes one."""
        # What a row holds is a list of candidates for code_eval and its like: here one.
        inputs: dict[str, Any] = {"predictions": list(answers) if self.predictions == "text" else [[answer] for answer in answers]}
        if self.references is not None:
            inputs["references"] = [list(texts) if self.references == "texts" else texts[0] for texts in references]
        found = self.module.compute(**inputs, **arguments)
        # code_eval gives its numbers, and what became of each program.
        return dict(found[0] if isinstance(found, tuple) else found)

    def score(self, result: Mapping[str, Any], key: str | None) -> float:
        """The number called `key`, the mean where there is one for each answer. Raises TaskError where there is none."""
        asked = key if key is not None else next(iter(result)) if len(result) == 1 else self.name
        if asked not in result:
            raise TaskError(
                f"{self.where}: the module's result has no {asked!r}, only {sorted(result)}. Say which is the score: `key`."
            )
        values = np.asarray(result[asked])
        if values.dtype.kind not in "biuf" or values.ndim > 1 or not values.size:
            raise TaskError(
                f"{self.where}: {asked!r} of the module's result is {result[asked]!r:.60}, must be a number. Set `key`."
            )
        return float(values.mean())


@functools.cache
def load_text_module(name: str, where: str) -> TextModule:
    """Once a process. name: on the hub, a folder, a .py file, or a package with dots. where: what asks for it, said in errors.

    Raises TaskError where it cannot be loaded, lacks a package, or takes other things than texts.
    """
    # Not at the head of the file: they take seconds.
    import datasets
    import evaluate

    if datasets.config.HF_HUB_OFFLINE:  # `evaluate` knows its own variable alone
        evaluate.config.HF_EVALUATE_OFFLINE = True
    try:
        # In memory: workers would wait for each other's locks on the files that it writes otherwise.
        path = _path(name)
        module = evaluate.load(path, keep_in_memory=True)
    except ImportError as e:
        raise TaskError(f"{where}: the module needs what is not installed on this node: {e}") from e
    except (FileNotFoundError, ConnectionError) as e:
        raise TaskError(
            f"{where}: the module cannot be had: {e} Write its name on the hub, a folder with a .py file of its name, that file, "
            "or its package with dots. Without a network it must be a folder that every node sees."
        ) from e
    except Exception as e:  # The module's own code runs here, and may raise anything.
        raise TaskError(f"{where}: the module cannot be loaded: {type(e).__name__}: {e}") from e
    return TextModule(where, Path(path).stem, module, *_inputs(module, where))


def _path(name: str) -> str:
    """For `evaluate.load`. A package's folder is looked up as Python does, so that it is found from any working directory."""
    path = Path(name).expanduser()
    if os.sep in name or "." not in name or path.exists():
        return str(path)
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of what stands before the last dot
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"there is no file, folder or package {name}.")
    return str(spec.submodule_search_locations[0])


def _inputs(module: Any, where: str) -> tuple[str, str | None]:
    """What kinds the module's inputs are. Of several forms the one with lists of references: a query may have several."""
    forms = module.features if isinstance(module.features, list) else [module.features]
    kinds = [{name: _kind(feature) for name, feature in form.items()} for form in forms]
    usable = [form for form in kinds if set(form) <= INPUTS and "predictions" in form and all(form.values())]
    if not usable:
        raise TaskError(
            f"{where}: the module takes {dict(forms[0])}, where a model's answers are given as `predictions` and the references as "
            "`references`, each a text or a list of texts. Take another module, or a function of your own as the grader."
        )
    form = max(usable, key=lambda form: form.get("references") == "texts")
    return str(form["predictions"]), form.get("references")


def _kind(feature: Any) -> str | None:
    """ "text", "texts" for a list of them, None for anything else."""
    dtype = getattr(feature, "dtype", None)
    if dtype in ("string", "large_string"):
        return "text"
    # `datasets` has had several classes for a list; what all of them have is the feature within.
    return "texts" if getattr(getattr(feature, "feature", None), "dtype", None) in ("string", "large_string") else None
