"""k nearest neighbours on embeddings: a query's label is the mean label of the k training queries nearest to it.

The baseline that surveys of routing found hard to beat (RouterBench, Hu et al. 2024, "KNN router"; Li 2025, "Rethinking
predictive modeling for LLM routing: when simple kNN beats complex learned routers"). Neighbours by cosine; k by the squared
error on the validation split.

Arrays in: embeddings and labels. Scores out. Runs in the driver, scikit-learn's brute-force search.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from firewall_ray.errors import LabelError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KnnResult:
    """p_weak: float32, (num_queries,), in [0, 1]. errors: mean squared error on validation, by k."""

    p_weak: Floats
    num_neighbours: int
    errors: dict[int, float]


def knn_scores(embeddings: Floats, labels: Floats, splits: NDArray[np.str_], num_neighbours: Sequence[int]) -> KnnResult:
    """Score every query from the train split's labels.

    embeddings: (num_queries, dimension). labels: (num_queries,), in [0, 1]; of test queries they are not looked at. A training
    query is not its own neighbour. A k above the number of neighbours there are counts as that number. Raises LabelError where
    train has fewer than 2 queries, or validation none.
    """
    train, validation = splits == "train", splits == "validation"
    if train.sum() < 2 or not validation.any():
        raise LabelError(
            f"knn needs 2 training queries and 1 validation query at least; labels/ has {train.sum()} and {validation.sum()}."
        )
    # One less than the training queries: for each of them that is all the others. One search for the largest k serves every k.
    ks = sorted({min(k, int(train.sum()) - 1) for k in num_neighbours})
    # scikit-learn's trees do not know the cosine; brute force is one product of matrices.
    search = NearestNeighbors(n_neighbors=ks[-1], metric="cosine", algorithm="brute").fit(embeddings[train])
    # (num_queries, largest k): rows of the train split, nearest first.
    neighbours = np.empty((len(labels), ks[-1]), dtype=np.int64)
    # Without queries scikit-learn searches for the fitted rows and leaves each itself out. Else a training query would score by its
    # own label.
    neighbours[train] = search.kneighbors(return_distance=False)
    if not train.all():
        neighbours[~train] = search.kneighbors(embeddings[~train], return_distance=False)
    # Nearest first: the mean over k of them is a running mean.
    means = np.cumsum(labels[train].astype(np.float64)[neighbours], axis=1) / np.arange(1, ks[-1] + 1)
    errors = {k: float(np.mean((means[validation, k - 1] - labels[validation]) ** 2)) for k in ks}
    # ks ascends: of equal errors the smallest k.
    best = min(ks, key=errors.__getitem__)
    return KnnResult(means[:, best - 1].astype(np.float32), best, errors)
