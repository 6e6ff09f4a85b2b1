from typing import Any, get_args

import pytest
from handmade import make_config
from pydantic import ValidationError

from firewall_ray.baselines.run import check_key
from firewall_ray.config.baselines import BaselineName, BaselinesConfig, HybridDesign
from firewall_ray.errors import ConfigError
from firewall_ray.schemas import HYBRID_DESIGNS


def test_all_baselines_are_made_unless_some_are_named() -> None:
    names = make_config("/r").baselines.names
    assert set(names) == {"margin_sampling", "knn", "routellm_mf", *HYBRID_DESIGNS}
    # RouteLLM's weights need an API's embeddings, so they have to be asked for.
    assert set(get_args(BaselineName)) - set(names) == {"routellm_mf_published"}
    assert set(HYBRID_DESIGNS) == set(get_args(HybridDesign)) < set(get_args(BaselineName))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"names": ["knn", "knn"]}, "a baseline comes twice"),
        ({"names": []}, "at least 1 item"),
        ({"bart_score": {"path": None}}, "`tokenizer` must name a tokenizer"),
        ({"bart_score": {"path": None, "tokenizer": "t", "hidden_size": 10, "num_heads": 4}}, "multiple of num_heads 4"),
        ({"embedding": {"openai": {}, "sentence_transformer": "s"}}, "both set; keep one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BaselinesConfig.model_validate(section)


def test_a_key_that_is_not_set_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    bought = {"names": ["knn"], "embedding": {"openai": {"api_key_env": "THE_KEY"}}}
    monkeypatch.delenv("THE_KEY", raising=False)
    with pytest.raises(ConfigError, match="THE_KEY"):
        check_key(make_config("/r", baselines=bought))
    check_key(make_config("/r", baselines={**bought, "names": ["margin_sampling"]}))
    monkeypatch.setenv("THE_KEY", "k")
    check_key(make_config("/r", baselines=bought))
