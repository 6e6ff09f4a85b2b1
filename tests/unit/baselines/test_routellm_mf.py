"""The matrix factorisation recovers preferences that were planted, and computes the delta of its paper."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from firewall_ray.baselines.routellm_mf import Battles, MatrixFactorization, fit, mf_scores, published_scores, win_probability
from firewall_ray.config.baselines import BaselinesConfig, RoutellmMfConfig, RoutellmPublishedConfig
from firewall_ray.errors import LabelError, ModelError

RNG = np.random.default_rng(0)
QUICK = RoutellmMfConfig(epochs=30, learning_rate=3e-3)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def unit(size: tuple[int, int]) -> np.ndarray:
    vectors = RNG.normal(size=size)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_logit_is_the_papers_difference_of_deltas() -> None:
    model = MatrixFactorization(num_models=3, text_dim=5, dim=4)
    query = torch.randn(1, 5)
    v = model.models.weight.detach().numpy()
    projected = model.projection.weight.detach().numpy() @ query[0].numpy() + model.projection.bias.detach().numpy()
    w2 = model.classifier.weight.detach().numpy()[0]
    delta = [w2 @ (v[m] / np.linalg.norm(v[m]) * projected) for m in range(3)]
    with torch.no_grad():
        assert model(query, torch.tensor([2]), torch.tensor([0])).item() == pytest.approx(delta[2] - delta[0], abs=1e-5)
    both = win_probability(model, query, 2, 0) + win_probability(model, query, 0, 2)
    assert both[0] == pytest.approx(1, abs=1e-6)


def test_a_planted_low_rank_preference_among_five_models_is_recovered() -> None:
    embeddings = unit((3_000, 16))
    skills, taste = RNG.normal(size=(5, 3)), RNG.normal(size=(16, 3))  # rank 3
    strengths = 4 * embeddings @ taste @ skills.T  # (query, model)
    a, b = RNG.integers(0, 5, 3_000), RNG.integers(1, 5, 3_000)
    b = (a + b) % 5  # another model
    rows = np.arange(3_000)
    planted = sigmoid(strengths[rows, a] - strengths[rows, b])
    a_wins = RNG.random(3_000) < planted
    winners, losers = np.where(a_wins, a, b), np.where(a_wins, b, a)

    def battles(chosen: np.ndarray) -> Battles:
        tensors = (torch.from_numpy(each[chosen]) for each in (rows, winners, losers))
        return Battles(*tensors, torch.ones(int(chosen.sum())))

    vectors = torch.from_numpy(embeddings.astype(np.float32))
    model = fit(vectors, battles(rows < 2_000), battles((rows >= 2_000) & (rows < 2_400)), 5, QUICK)
    test = rows >= 2_400
    with torch.no_grad():
        found = torch.sigmoid(model(vectors[test], torch.from_numpy(a[test]), torch.from_numpy(b[test]))).numpy()
    bayes = roc_auc_score(a_wins[test], planted[test])
    assert bayes > 0.8
    assert roc_auc_score(a_wins[test], found) > bayes - 0.02


def test_scores_from_outcomes_rank_by_who_wins_and_training_repeats_itself() -> None:
    embeddings = unit((900, 8)).astype(np.float32)
    splits = np.array(["train"] * 500 + ["validation"] * 100 + ["test"] * 300)
    weak, strong = sigmoid(4 * embeddings[:, 0]), sigmoid(4 * embeddings[:, 1] + 1)
    n = 8
    rates = [RNG.binomial(n, p).astype(np.float32) / n for p in (weak, strong)]
    p_weak = mf_scores(embeddings, *rates, splits, QUICK)
    wins, losses = weak * (1 - strong), strong * (1 - weak)
    test = splits == "test"
    assert np.corrcoef(p_weak[test], (wins / (wins + losses))[test])[0, 1] > 0.95
    np.testing.assert_array_equal(p_weak, mf_scores(embeddings, *rates, splits, QUICK))


def test_models_that_never_differ_are_refused() -> None:
    ones = np.ones(4, np.float32)
    with pytest.raises(LabelError, match="no query of the train split"):
        mf_scores(np.eye(4, dtype=np.float32), ones, ones, np.array(["train", "train", "validation", "test"]), QUICK)


# RouteLLM's published weights ----------------------------------------------------------------------------------------


def published(folder: Path, num_models: int = 4, text_dim: int = 6) -> dict[str, torch.Tensor]:
    """A file as RouteLLM publishes it, with numbers of our own."""
    torch.manual_seed(0)
    names = {"P.weight": (num_models, 3), "text_proj.0.weight": (3, text_dim), "classifier.0.weight": (1, 3)}
    weights = {name: torch.randn(shape) for name, shape in names.items()}
    save_file(weights, folder / "model.safetensors")
    return weights


def test_published_weights_give_the_win_rate_of_routellms_own_formula(tmp_path: Path) -> None:
    weights = published(tmp_path)
    embeddings = RNG.normal(size=(5, 6)).astype(np.float32)
    settings = RoutellmPublishedConfig(weights=str(tmp_path), strong=1, weak=3)
    vectors = weights["P.weight"] / weights["P.weight"].norm(dim=1, keepdim=True)
    for embedding, p_weak in zip(torch.from_numpy(embeddings), published_scores(embeddings, settings), strict=True):
        logits = weights["classifier.0.weight"] @ (vectors * (weights["text_proj.0.weight"] @ embedding)).T
        assert p_weak == pytest.approx(torch.sigmoid(logits[0, 3] - logits[0, 1]).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strong": 4}, r"has 4 models and embeddings of 6 numbers; the config asks for models 3 and 4"),
        ({"weights": "nowhere/at-all"}, r"baselines\.routellm_mf_published\.weights: 'nowhere/at-all' cannot be used"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # or its client tries for 20 s where there is no network
    published(tmp_path)
    settings = RoutellmPublishedConfig(**{"weights": str(tmp_path), "strong": 1, "weak": 3, **changes})
    with pytest.raises(ModelError, match=message):
        published_scores(np.ones((2, 6), np.float32), settings)


def test_published_weights_without_their_embedding_are_refused_by_the_config() -> None:
    with pytest.raises(ValidationError, match=r"set embedding\.openai"):
        BaselinesConfig.model_validate({"names": ["routellm_mf_published"]})


def test_training_has_the_numbers_of_routellms_script() -> None:
    settings = RoutellmMfConfig()
    found = (settings.dim, settings.batch_size, settings.epochs, settings.noise, settings.learning_rate, settings.weight_decay)
    assert found == (128, 64, 100, 0.1, 3e-4, 1e-5)  # dim, batch_size, num_epochs, alpha, lr, weight_decay at its end
