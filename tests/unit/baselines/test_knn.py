import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor

from firewall_ray.baselines.knn import knn_scores
from firewall_ray.errors import LabelError

RNG = np.random.default_rng(0)
SPLITS = np.array(["train"] * 120 + ["validation"] * 40 + ["test"] * 40)
EMBEDDINGS = RNG.normal(size=(200, 6)).astype(np.float32)
# A label that varies smoothly with the direction, and noise.
LABELS = (1 / (1 + np.exp(-3 * EMBEDDINGS[:, 0])) * RNG.uniform(0.6, 1, 200)).astype(np.float32)


def test_the_score_is_the_mean_label_of_the_nearest_training_queries() -> None:
    # Angles 0, 30, 90 degrees and one query at 10: its two nearest are the first two.
    angles = np.deg2rad([0, 30, 90, 10, 80])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * np.float32([[1], [5], [1], [2], [9]])
    labels = np.float32([0.2, 0.6, 1.0, 0.4, 0])
    found = knn_scores(embeddings, labels, np.array(["train"] * 3 + ["validation", "test"]), [2])
    np.testing.assert_allclose(found.p_weak[3:], [0.4, 0.8])  # (0.2 + 0.6) / 2 and (1.0 + 0.6) / 2
    # A training query is not its own neighbour: the first has the second and the third.
    assert found.p_weak[0] == pytest.approx(0.8)


def test_scores_and_choice_of_k_agree_with_scikit_learns_regressor() -> None:
    found = knn_scores(EMBEDDINGS, LABELS, SPLITS, [1, 5, 20, 80])
    train, validation, test = (name == SPLITS for name in ("train", "validation", "test"))
    errors = {}
    for k in (1, 5, 20, 80):
        regressor = KNeighborsRegressor(k, metric="cosine").fit(EMBEDDINGS[train], LABELS[train])
        errors[k] = np.mean((regressor.predict(EMBEDDINGS[validation]) - LABELS[validation]) ** 2)
        if k == found.num_neighbours:
            np.testing.assert_allclose(found.p_weak[test], regressor.predict(EMBEDDINGS[test]), atol=1e-6)
    assert found.errors == pytest.approx(errors, abs=1e-6)
    assert found.num_neighbours == min(errors, key=errors.__getitem__)
    assert found.num_neighbours not in (1, 80)  # neither noise nor the overall mean


def test_the_test_splits_labels_are_not_looked_at() -> None:
    other = np.where(SPLITS == "test", 1 - LABELS, LABELS).astype(np.float32)
    np.testing.assert_array_equal(
        knn_scores(EMBEDDINGS, other, SPLITS, [5, 10]).p_weak, knn_scores(EMBEDDINGS, LABELS, SPLITS, [5, 10]).p_weak
    )


def test_more_neighbours_than_there_are_means_all_of_them() -> None:
    found = knn_scores(EMBEDDINGS, LABELS, SPLITS, [1_000])
    assert found.num_neighbours == 119


@pytest.mark.parametrize("splits", [["train", "validation"], ["train", "train"]])
def test_too_few_queries_are_refused(splits: list[str]) -> None:
    with pytest.raises(LabelError, match="2 training queries and 1 validation query"):
        knn_scores(EMBEDDINGS[:2], LABELS[:2], np.array(splits), [1])
