"""pass@k as an `evaluate` module; see firewall_ray/evaluation/pass_at_k.py."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from firewall_ray.evaluation.pass_at_k import mean_pass_at_k

DESCRIPTION = "The unbiased estimate of the chance that at least one of k samples is right, from n samples that were graded."
INPUTS = """
predictions: for each problem the verdicts of its samples. k: one or several.
Returns pass@k of each k, the mean over the problems in [0, 1].

>>> metric = evaluate.load("firewall_ray/integrations/pass_at_k")
>>> metric.compute(predictions=[[True, False, False, False]], k=[1, 2])
{'pass@1': 0.25, 'pass@2': 0.5}
"""
CITATION = "Chen et al. 2021, Evaluating Large Language Models Trained on Code"


class PassAtK(evaluate.Metric):
    """Rows in: the verdicts of a problem's samples. `evaluate`'s own code_eval executes programs; this one does not."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            # Of any length: problems may have been sampled a different number of times.
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("bool"))}),
        )

    def _compute(self, predictions: list[list[bool]], k: Sequence[int] = (1,)) -> dict[str, Any]:
        num_samples, num_correct = [len(verdicts) for verdicts in predictions], [sum(verdicts) for verdicts in predictions]
        return {f"pass@{each}": mean_pass_at_k(num_samples, num_correct, each) for each in k}
