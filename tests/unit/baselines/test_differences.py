"""What is said of the baselines is said of each, and docs/baselines.md says the same."""

from pathlib import Path
from typing import get_args

import pytest
from handmade import make_config

from firewall_ray.baselines.differences import ALWAYS, differences
from firewall_ray.config.baselines import BaselineName
from firewall_ray.config.run import load_config

REPOSITORY = Path(__file__).resolve().parents[3]
NAMES = set(get_args(BaselineName))


def test_every_baseline_has_its_differences_and_nothing_else_has() -> None:
    assert set(ALWAYS) == NAMES
    assert differences("soft_block", make_config("/r")) == []


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_papers_config_differs_in_what_always_differs_alone(name: str) -> None:
    assert differences(name, load_config(REPOSITORY / "jobs/configs/paper.yaml")) == list(ALWAYS[name])


def test_what_a_config_chose_otherwise_is_said() -> None:
    baselines = {"hybrid_llm": {"epochs": 3}, "bart_score": {"path": None, "tokenizer": "t"}, "routellm_mf": {"noise": 0.05}}
    config = make_config("/r", baselines=baselines, sampling={"num_samples": 4})
    said = differences("hybrid_llm_prob", config)[len(ALWAYS["hybrid_llm_prob"]) :]
    assert said == [
        "3 epochs; their paper has 5.",
        "4 responses of each model; their paper has 10.",  # more were not sampled
        "BARTScore is by a small BART trained from scratch.",
    ]
    assert not any("responses of each model" in line for line in differences("hybrid_llm_det", config))
    assert differences("routellm_mf", config)[-2:] == [
        "Embeddings are not text-embedding-3-small's.",
        "Noise of 0.05 on the embeddings; their script's alpha is 0.1.",
    ]


def test_the_document_says_what_the_code_says() -> None:
    document = " ".join((REPOSITORY / "docs/baselines.md").read_text(encoding="utf-8").split())
    assert [line for lines in ALWAYS.values() for line in lines if line not in document] == []
