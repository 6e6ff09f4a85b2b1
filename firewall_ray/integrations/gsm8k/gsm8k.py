"""GSM8K's three rules as an `evaluate` module; see firewall_ray/tasks/gsm8k.py."""

from typing import Any

import datasets
import evaluate

from firewall_ray.tasks.gsm8k import RULES, Gsm8k

DESCRIPTION = "Share of completions whose answer is right, by OpenAI's rule and by lm-evaluation-harness' strict and flexible ones."
INPUTS = """
predictions: completions, one a question. references: the official numbers, commas removed.
Returns official, strict and flexible, means over the questions in [0, 1].

>>> metric = evaluate.load("firewall_ray/integrations/gsm8k")
>>> metric.compute(predictions=["It makes $18."], references=["18"])
{'official': 0.0, 'strict': 0.0, 'flexible': 1.0}
"""
CITATION = "Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems"


class Gsm8kAnswers(evaluate.Metric):
    """Rows in: a completion and the number that is right."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        # By the benchmark's own method and option, so these are the verdicts of jobs/grade.py.
        pairs = list(zip(predictions, references, strict=True))
        return {rule: sum(Gsm8k().grade(p, {"answer": r}, {"rule": rule}) for p, r in pairs) / len(pairs) for rule in RULES}
