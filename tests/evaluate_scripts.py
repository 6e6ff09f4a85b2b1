"""Modules of Hugging Face's `evaluate` made by hand: a folder with a script of its name, as its hub has them."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TEXT, TEXTS = 'datasets.Value("string")', 'datasets.Sequence(datasets.Value("string"))'
ONE_EACH = f"{{'predictions': {TEXT}, 'references': {TEXT}}}"

# The share of a reference's words that the prediction has, of the best reference; and how many words it has.
WORDS = """
        shared = lambda p, r: len(set(p.split()) & set(r.split())) / len(set(r.split()))
        shares = [max(shared(p, r) for r in rs) for p, rs in zip(predictions, references)]
        return {"share": sum(shares) / len(shares), "words": sum(len(p.split()) for p in predictions)}
"""
# As exact_match: one reference each.
SAME = """
        return {"same": sum(p == r for p, r in zip(predictions, references)) / len(predictions)}
"""


def make_module(
    folder: Path,
    name: str,
    compute: str = SAME,
    features: str = ONE_EACH,
    imports: str = "",
) -> Path:
    """folder/name/name.py. features: of one form, or a list of them, as Python."""
    (folder / name).mkdir(parents=True)
    form = f"[datasets.Features(form) for form in {features}]" if features.startswith("[") else f"datasets.Features({features})"
    (folder / name / f"{name}.py").write_text(
        f"import datasets\nimport evaluate\n{imports}\n\n"
        "class Module(evaluate.Metric):\n"
        "    def _info(self):\n"
        f"        return evaluate.MetricInfo(description='', citation='', inputs_description='', features={form})\n\n"
        f"    def _compute(self, predictions, references=None, **arguments):\n{compute}"
    )
    return folder / name


def make_words(folder: Path) -> Path:
    """As rouge and bleu: texts, or lists of them, as references."""
    features = f"[{{'predictions': {TEXT}, 'references': {TEXTS}}}, {{'predictions': {TEXT}, 'references': {TEXT}}}]"
    return make_module(folder, "words", WORDS, features)


@contextmanager
def own_caches(cache: Path) -> Iterator[None]:
    """`evaluate` with caches of its own, where no connection can be made."""
    import evaluate

    from firewall_ray.tasks.evaluate_module import load_text_module

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    def forget() -> None:
        """What was loaded from other caches: Python would look for a new module in the old folder."""
        load_text_module.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] == evaluate.config.MODULE_NAME_FOR_DYNAMIC_MODULES]:
            del sys.modules[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(cache / "modules"))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(cache / "metrics"))
        patch.syspath_prepend(cache / "modules")
        forget()
        yield
        forget()
