"""Agreement of two graders, against numbers by hand and scikit-learn's kappa."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from firewall_ray.evaluation.agreement import agreement, cohen_kappa


def test_accuracy_and_kappa_of_cohens_own_kind_of_table() -> None:
    """20 both right, 5 labelled right alone, 10 judged right alone, 15 both wrong: 0.7 observed, 0.5 by chance, kappa 0.4."""
    labelled = [True] * 25 + [False] * 25
    judged = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement(judged, labelled)
    assert found["num_answers"] == 50
    assert found["accuracy"]["value"] == pytest.approx(0.7)
    assert found["kappa"]["value"] == pytest.approx(0.4)
    # The standard error of a share of 0.7 of 50 is 0.065; the normal interval reaches 0.127 to both sides.
    assert found["accuracy"]["low"] == pytest.approx(0.573, abs=0.025)
    assert found["accuracy"]["high"] == pytest.approx(0.827, abs=0.025)
    assert found["kappa"]["low"] < 0.4 < found["kappa"]["high"]
    assert found == agreement(judged, labelled)


def test_a_judge_that_calls_everything_right_has_a_kappa_of_0_however_often_it_is_right() -> None:
    found = agreement([True] * 100, [True] * 90 + [False] * 10)
    assert (found["accuracy"]["value"], found["kappa"]["value"]) == (0.9, 0.0)


def test_what_is_undefined_is_none() -> None:
    assert agreement([True, True], [True, True])["kappa"] == {"value": None, "low": None, "high": None}
    assert agreement([], [])["accuracy"]["value"] is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_kappa_is_scikit_learns(pairs: list[tuple[bool, bool]]) -> None:
    labelled, judged = zip(*pairs, strict=True)
    ours = float(cohen_kappa(np.bincount(2 * np.array(labelled) + np.array(judged), minlength=4)))
    theirs = cohen_kappa_score(labelled, judged, labels=[False, True])
    assert math.isnan(ours) == math.isnan(theirs)
    assert math.isnan(ours) or ours == pytest.approx(theirs)
