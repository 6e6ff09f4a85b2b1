"""RouteLLM's matrix factorisation router (Ong et al. 2024, "RouteLLM: Learning to Route LLMs with Preference Data", Sec. 4.2).

delta(M, q) = w2^T (v_M * (W1^T v_q + b)), with v_M a model's learned vector (scaled to length 1, as in RouteLLM's code) and v_q
the query's embedding; P(M beats M' on q) = sigmoid(delta(M, q) - delta(M', q)), trained by cross-entropy on battles that one
side won. p_weak = P(weak beats strong).

Here a battle is a pair of sampled answers of which one is right: of a query's n * n pairs the strong model wins the share
pr_strong * (1 - pr_weak) and the weak one pr_weak * (1 - pr_strong). Pairs that are both right or both wrong are ties and, as in
RouteLLM's training, left out.

Arrays in: embeddings and pass rates. Scores out. Runs in the driver: seconds on a CPU.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import normalize, softplus

from firewall_ray.config.baselines import RoutellmMfConfig, RoutellmPublishedConfig
from firewall_ray.errors import LabelError, ModelError

Floats = NDArray[np.float32]
# Rows of the models' vectors when trained here; published weights have 64 models, see `RoutellmPublishedConfig`.
WEAK, STRONG = 0, 1


@dataclass(frozen=True)
class Battles:
    """Who won on which query. All tensors are (num_battles,): rows of the embeddings, models' indices, and float32 weights."""

    queries: torch.Tensor
    winners: torch.Tensor
    losers: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.weights)


class MatrixFactorization(nn.Module):
    """delta of queries and models. The published weights have no b; theirs is 0 here."""

    def __init__(self, num_models: int, text_dim: int, dim: int) -> None:
        super().__init__()
        # v_M is (num_models, dim), W1 (dim, text_dim), w2 (1, dim). delta(M) - delta(M') is linear in v_M - v_M', so one pass does.
        self.models = nn.Embedding(num_models, dim)
        self.projection = nn.Linear(text_dim, dim)
        self.classifier = nn.Linear(dim, 1, bias=False)

    def forward(self, embeddings: torch.Tensor, winners: torch.Tensor, losers: torch.Tensor) -> torch.Tensor:
        """delta(winner) - delta(loser), (num_battles,). embeddings: float32, (num_battles, text_dim)."""
        difference = normalize(self.models(winners)) - normalize(self.models(losers))
        return self.classifier(difference * self.projection(embeddings)).squeeze(-1)


def mf_scores(
    embeddings: Floats, pass_rate_weak: Floats, pass_rate_strong: Floats, splits: NDArray[np.str_], settings: RoutellmMfConfig
) -> Floats:
    """p_weak of every query, float32, (num_queries,), in [0, 1]; trained on the train split.

    embeddings: (num_queries, dimension). Raises LabelError where no battle of the train or validation split has a winner.
    """
    vectors = torch.from_numpy(np.ascontiguousarray(embeddings))
    battles = {name: outcome_battles(pass_rate_weak, pass_rate_strong, splits == name) for name in ("train", "validation")}
    for name, fought in battles.items():
        if not len(fought):
            raise LabelError(
                f"routellm_mf: on no query of the {name} split is one model right and the other wrong, so there is nothing to "
                "learn from. Choose another pair or more queries, or leave it out of baselines.names."
            )
    model = fit(vectors, battles["train"], battles["validation"], 2, settings)
    return win_probability(model, vectors, WEAK, STRONG)


def published_scores(embeddings: Floats, settings: RoutellmPublishedConfig) -> Floats:
    """p_weak of every query by RouteLLM's published weights (`settings.weights`), for their models in place of the run's pair.

    embeddings: those that the weights were trained on, as they are. Raises ModelError where the weights cannot be had, are not a
    matrix factorisation, or do not fit the embeddings.
    """
    path = settings.weights
    try:
        file = Path(path) / "model.safetensors"
        tensors = load_file(file if file.exists() else hf_hub_download(path, "model.safetensors"))
        # RouteLLM's names of v_M, W1 and w2.
        weights = {name: tensors[name] for name in ("P.weight", "text_proj.0.weight", "classifier.0.weight")}
    except Exception as e:  # huggingface_hub and safetensors raise OSError, ValueError, KeyError and errors of their own
        raise ModelError(
            f"baselines.routellm_mf_published.weights: {path!r} cannot be used: {type(e).__name__}: {e}. Give the folder or hub id "
            "of RouteLLM's weights with its model.safetensors; or leave routellm_mf_published out of baselines.names."
        ) from e
    num_models, dim = weights["P.weight"].shape
    # Checked here: torch would only say that two matrices cannot be multiplied, or that an index is out of range.
    text_dim = weights["text_proj.0.weight"].shape[1]
    if text_dim != embeddings.shape[1] or max(settings.weak, settings.strong) >= num_models:
        raise ModelError(
            f"baselines.routellm_mf_published.weights: {path!r} has {num_models} models and embeddings of {text_dim} numbers; "
            f"the config asks for models {settings.weak} and {settings.strong}, embeddings/ has {embeddings.shape[1]}."
        )
    model = MatrixFactorization(num_models, text_dim, dim)
    model.load_state_dict(
        {
            "models.weight": weights["P.weight"],
            "projection.weight": weights["text_proj.0.weight"],
            "projection.bias": torch.zeros(dim),
            "classifier.weight": weights["classifier.0.weight"],
        }
    )
    return win_probability(model, torch.from_numpy(np.ascontiguousarray(embeddings)), settings.weak, settings.strong)


def outcome_battles(pass_rate_weak: Floats, pass_rate_strong: Floats, chosen: NDArray[np.bool_]) -> Battles:
    """The battles of the chosen queries, each query's wins of either side as one battle with their share as its weight.

    >>> battles = outcome_battles(np.float32([0.25, 1]), np.float32([0.5, 1]), np.array([True, True]))
    >>> battles.queries.tolist(), battles.winners.tolist(), battles.weights.tolist()  # 0.5 * 0.75 and 0.25 * 0.5; then only ties
    ([0, 0], [1, 0], [0.375, 0.125])
    """
    # float32, (2, num_queries), in [0, 1]: the strong model's wins above, the weak model's below. Pairs as battles of their own
    # would teach the same, from 1,024 rows a query at n = 32.
    weights = np.stack([pass_rate_strong * (1 - pass_rate_weak), pass_rate_weak * (1 - pass_rate_strong)])
    sides, queries = np.nonzero((weights > 0) & chosen)
    winners = np.array([STRONG, WEAK])[sides]
    return Battles(
        torch.from_numpy(queries),
        torch.from_numpy(winners),
        torch.from_numpy(1 - winners),
        torch.from_numpy(weights[sides, queries].astype(np.float32)),
    )


def fit(embeddings: torch.Tensor, train: Battles, validation: Battles, num_models: int, settings: RoutellmMfConfig) -> nn.Module:
    """Adam on the weighted cross-entropy of the winners; the epoch with the lowest validation loss is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = MatrixFactorization(num_models, embeddings.shape[1], settings.dim)
        # Adam with its L2 penalty, not AdamW, as in RouteLLM's train_matrix_factorization.py.
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        best, kept = np.inf, deepcopy(model.state_dict())
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(train)).split(settings.batch_size):
                vectors = embeddings[train.queries[rows]]
                # Before the projection and drawn anew for every batch, as there; validation reads the embeddings as they are.
                vectors = vectors + settings.noise * torch.randn_like(vectors)
                loss = _loss(model(vectors, train.winners[rows], train.losers[rows]), train.weights[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                logits = model(embeddings[validation.queries], validation.winners, validation.losers)
                validation_loss = float(_loss(logits, validation.weights))
            if validation_loss < best:
                best, kept = validation_loss, deepcopy(model.state_dict())
        model.load_state_dict(kept)
    return model.eval()


@torch.no_grad()
def win_probability(model: nn.Module, embeddings: torch.Tensor, first: int, second: int) -> Floats:
    """P(model `first` beats model `second`) on each query, float32, (num_queries,)."""
    ones = torch.ones(len(embeddings), dtype=torch.int64)
    return torch.sigmoid(model(embeddings, first * ones, second * ones)).numpy()


def _loss(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    # softplus(-x) is -log sigmoid(x), and finite where sigmoid(x) is rounded to 0.
    return (weights * softplus(-logits)).sum() / weights.sum()
