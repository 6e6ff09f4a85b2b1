"""TriviaQA's exact match and F1 as an `evaluate` module; see firewall_ray/tasks/triviaqa.py."""

from typing import Any

import datasets
import evaluate

from firewall_ray.tasks.triviaqa import exact_match, f1

DESCRIPTION = "TriviaQA's official exact match and F1 over all aliases of an answer, both normalised."
INPUTS = """
predictions: texts, one a question. references: for each the list of its aliases.
Returns exact_match and f1, means over the questions in [0, 1]; the official program prints them times 100.

>>> metric = evaluate.load("firewall_ray/integrations/triviaqa")
>>> metric.compute(predictions=["the Beatles!"], references=[["Beatles", "Fab Four"]])
{'exact_match': 1.0, 'f1': 1.0}
"""
CITATION = "Joshi et al. 2017, TriviaQA: A Large Scale Distantly Supervised Challenge Dataset for Reading Comprehension"


class TriviaQa(evaluate.Metric):
    """Rows in: a prediction and its aliases."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            # The aliases of one question are one reference: the best of them counts, not their mean.
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        pairs = list(zip(predictions, references, strict=True))
        return {
            "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
            "f1": sum(f1(*pair) for pair in pairs) / len(pairs),
        }
