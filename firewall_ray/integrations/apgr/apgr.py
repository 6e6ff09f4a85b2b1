"""A router's APGR, CPT and pass rates as an `evaluate` module; see firewall_ray/evaluation/metrics.py."""

from typing import Any

import datasets
import evaluate

# By its full name, like all imports of these files: evaluate.load copies a file alone into its cache and imports it from there.
from firewall_ray.evaluation.metrics import evaluate as evaluate_router

DESCRIPTION = "How much of the gap between a weak and a strong model a router recovers, over the share of strong calls."
INPUTS = """
predictions: p_weak, the router's scores; larger means send to the weak model. pass_rate_weak, pass_rate_strong: of the two
models, in [0, 1]. query_ids: what breaks ties. seed: of the ties.
Returns apgr, apgr_mean, pass_rate_20/50/80 and cpt_20/50/80; NaN where one has no value.

>>> metric = evaluate.load("firewall_ray/integrations/apgr")
>>> metric.compute(predictions=[0.1, 0.9], pass_rate_weak=[0, 1], pass_rate_strong=[1, 1], query_ids=["a", "b"])["apgr"]
0.75
"""
CITATION = "Ong et al. 2024, RouteLLM: Learning to Route LLMs with Preference Data"


class Apgr(evaluate.Metric):
    """Rows in: a query's score and the pass rates of both models."""

    def _info(self) -> evaluate.MetricInfo:
        # What is given is kept in Arrow in this type: in float32 scores that differ in the 8th digit would become ties.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": number,
                    "pass_rate_weak": number,
                    "pass_rate_strong": number,
                    "query_ids": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        pass_rate_weak: list[float],
        pass_rate_strong: list[float],
        query_ids: list[str],
        # Whatever is no feature goes to _compute as it is given to compute.
        seed: int = 0,
    ) -> dict[str, Any]:
        return evaluate_router(predictions, pass_rate_weak, pass_rate_strong, query_ids, seed)
