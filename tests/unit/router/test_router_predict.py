import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_router import CAUSAL, SCRATCH, fill_folder, make_card

from firewall_ray.config.router import RouterConfig
from firewall_ray.errors import ModelError
from firewall_ray.router.card import CARD_FILE, load_card, parse_card
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.tiny_world import draw_unique

PROMPTS = [PROMPT_TEMPLATE.format(question=item.question) for item in draw_unique(seed=3, num_items=40)]


@pytest.fixture(scope="module", params=[SCRATCH, CAUSAL], ids=["scratch", "causal"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("router")
    fill_folder(path, request.param)
    return path


def test_a_score_does_not_depend_on_its_batch(folder: Path) -> None:
    one_by_one = RouterPredictor(folder, batch_size=1).predict(PROMPTS)
    assert np.ptp(one_by_one) > 0.01  # the scores differ, or agreement would mean nothing
    for batch_size in (2, 7, 64):
        np.testing.assert_allclose(RouterPredictor(folder, batch_size=batch_size).predict(PROMPTS), one_by_one, atol=1e-5)


def test_scores_follow_their_prompts_in_any_order(folder: Path) -> None:
    predictor = RouterPredictor(folder, batch_size=8)
    order = np.random.default_rng(0).permutation(len(PROMPTS))
    shuffled = predictor.predict([PROMPTS[i] for i in order])
    np.testing.assert_allclose(shuffled, predictor.predict(PROMPTS)[order], atol=1e-5)


def test_scores_repeat_and_are_float32_probabilities(folder: Path) -> None:
    first, second = (RouterPredictor(folder).predict(PROMPTS) for _ in range(2))
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.tolist() == second.tolist()


def test_scores_are_the_sigmoid_of_what_transformers_computes(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    encoded = tokenizer(PROMPTS[0], return_tensors="pt", return_token_type_ids=False)
    expected = torch.sigmoid(model(**encoded).logits).item()
    assert RouterPredictor(folder).predict(PROMPTS[:1])[0] == pytest.approx(expected, abs=1e-6)


def test_what_lies_beyond_max_length_does_not_count_and_is_told(folder: Path) -> None:
    long = "Question: " + "What is 1 plus 2? " * 20
    scored = RouterPredictor(folder).score([PROMPTS[0], long, long + "and more"])
    assert scored.truncated.tolist() == [False, True, True]
    assert scored.p_weak[1] == pytest.approx(scored.p_weak[2], abs=1e-6)


def test_no_prompts_give_no_scores_and_an_empty_prompt_gives_one(folder: Path) -> None:
    predictor = RouterPredictor(folder)
    assert predictor.predict([]).shape == (0,)
    assert np.isfinite(predictor.predict([""])).all()


def test_a_folder_without_card_is_not_a_router(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no router\.json.*jobs/train_router\.py"):
        RouterPredictor(tmp_path)


def test_a_router_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_bytes((folder / CARD_FILE).read_bytes())
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        RouterPredictor(tmp_path)


def test_a_card_survives_being_written_and_read() -> None:
    written = make_card(RouterConfig())
    assert parse_card(written.model_dump_json(), "router.json") == written


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"design": "soft block"}, "design"),
        ({"max_length": "long"}, "max_length"),
        ({"surprise": 1}, "surprise"),
        ({"quantiles": {"values": [0.5, 0.1], "num_below": [0, 1], "num_at": [1, 1], "num_scores": 2}}, "quantile"),
    ],
)
def test_a_wrong_card_names_file_and_field(change: dict[str, object], named: str) -> None:
    content = {**json.loads(make_card(RouterConfig()).model_dump_json()), **change}
    with pytest.raises(ModelError, match=rf"routers/x/router\.json is not a router's card.*{named}"):
        parse_card(json.dumps(content), "routers/x/router.json")


def test_a_missing_card_in_the_store_names_the_job(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no router\.json.*jobs/train_router\.py"):
        load_card(ArtifactStore(str(tmp_path)).router("soft_block"))
