"""From a score to a decision: the only place, offline and online, where a score meets a threshold. numpy only.

A query goes to the strong model when its `p_weak` lies below the threshold. Where it equals the threshold, a seeded hash of
the query decides, so that tied scores still give the strong fraction that was asked for, and the same query always takes
the same way. The hash reads a `key`: the prompt where the decision must repeat online, since the server knows nothing else
of a query; a query id serves as well where all stays offline. Ranking (`rank`) and thresholding use the same order
(p_weak, then hash): whatever a threshold sends to the strong model is the beginning of the ranking.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firewall_ray.errors import PolicyError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """Where the scores are cut, so that `strong_fraction` of the calibration sample goes to the strong model.

    value: a p_weak; -inf sends nothing and inf everything. tie_share: in [0, 1], the share of the queries with exactly
    this p_weak that goes to the strong model. strong_fraction: what was asked for, in [0, 1].
    """

    value: float
    tie_share: float
    strong_fraction: float


def tie_hash(key: str, seed: int = 0) -> float:
    """Uniform in [0, 1), a function of key and seed alone: the same in every process and on every machine.

    >>> tie_hash("Question: How many?", seed=0) == tie_hash("Question: How many?", seed=0)
    True
    """
    # Requests may carry lone surrogates (valid JSON, invalid UTF-8); they must not crash a decision.
    # Python's own hash() is salted anew in each process. The seed is the key of the hash, so other seeds are independent draws.
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode()).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53  # 53 bits: every value is an exact float64 below 1


def rank(p_weak: ArrayLike, keys: Sequence[str], seed: int = 0) -> NDArray[np.intp]:
    """The order in which queries go to the strong model: lowest `p_weak` first, ties by `tie_hash`, never by row.

    p_weak: (num_queries,), finite. keys: as many strings. Returns int, (num_queries,): row numbers in that order.
    Raises PolicyError on NaN or infinite scores, or where the lengths differ.

    >>> rank([0.9, 0.1, 0.5], ["a", "b", "c"])
    array([1, 2, 0])
    """
    scores = _checked_scores(p_weak)
    _check_lengths(scores, keys)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    # (num_queries,), in ranked order: whether a neighbour has the same score.
    tied = np.zeros(len(ranked), dtype=bool)
    if len(ranked) > 1:
        equal = ranked[1:] == ranked[:-1]
        tied[1:] |= equal
        tied[:-1] |= equal
    hashes = np.zeros(len(scores))
    for row in order[tied]:  # hashing costs more than sorting, so only what is tied is hashed
        hashes[row] = tie_hash(keys[row], seed)
    # Sorts by its last key first: p_weak, then hash.
    return np.lexsort((hashes, scores))


def goes_strong(p_weak: ArrayLike, keys: Sequence[str], threshold: Threshold, seed: int = 0) -> NDArray[np.bool_]:
    """The decision: True for the strong model. p_weak: (num_queries,); keys: as many strings. Returns bool, (num_queries,).

    Raises PolicyError on NaN or infinite scores, or where the lengths differ.

    >>> goes_strong([0.1, 0.9], ["a", "b"], Threshold(value=0.5, tie_share=0.0, strong_fraction=0.3))
    array([ True, False])
    """
    scores = _checked_scores(p_weak)
    _check_lengths(scores, keys)
    # (num_queries,) bool. Rows that equal the threshold are decided one by one: there are few, unless scores are coarse.
    strong = scores < threshold.value
    for row in np.flatnonzero(scores == threshold.value):
        strong[row] = tie_hash(keys[row], seed) < threshold.tie_share
    return strong


def realised_fraction(p_weak: ArrayLike, keys: Sequence[str], threshold: Threshold, seed: int = 0) -> float:
    """Share of these queries that the threshold sends to the strong model, in [0, 1]. Raises PolicyError without queries."""
    strong = goes_strong(p_weak, keys, threshold, seed)
    if not len(strong):
        raise PolicyError("realised_fraction: there are no queries, so no share of them. Hand in at least one score.")
    return float(strong.mean())


def exact_budget(p_weak: ArrayLike, query_ids: Sequence[str], num_strong: int, seed: int = 0) -> NDArray[np.bool_]:
    """Exactly `num_strong` of the queries go to the strong model: the first of the ranking. Returns bool, (num_queries,).

    Raises PolicyError where `num_strong` is not in [0, num_queries], and as `rank` does.

    >>> exact_budget([0.9, 0.1, 0.5], ["a", "b", "c"], num_strong=2)
    array([False,  True,  True])
    """
    order = rank(p_weak, query_ids, seed)
    if not 0 <= num_strong <= len(order):
        raise PolicyError(f"num_strong is {num_strong}, but there are {len(order)} queries: choose from 0 to {len(order)}.")
    strong = np.zeros(len(order), dtype=bool)
    strong[order[:num_strong]] = True
    return strong


@dataclass(frozen=True)
class QuantileTable:
    """What a threshold needs to know of a calibration sample, small enough for a router's card. `asdict` makes it JSON.

    values: scores, strictly increasing. num_below, num_at: how many calibration scores lie below, and exactly at, each.
    num_scores: size of the sample. Scores that many queries share keep their exact counts; elsewhere the table keeps
    every 1/num_quantiles of the sample and interpolates, so a fraction is off by at most that.
    """

    values: list[float]
    num_below: list[int]
    num_at: list[int]
    num_scores: int

    def __post_init__(self) -> None:
        """Raises PolicyError on a table that no sample can have: cards are read from files that people edit."""
        below, at = np.array(self.num_below), np.array(self.num_at)
        sizes = {len(self.values), len(self.num_below), len(self.num_at)}
        if sizes == {0} or len(sizes) != 1:
            raise PolicyError("quantile table: values, num_below and num_at must be lists of one length, at least 1.")
        ordered = all(math.isfinite(v) for v in self.values) and bool(np.all(np.diff(self.values) > 0))
        # From one kept value to the next, what lies below grows by at least the scores at the first.
        counted = bool(below[0] == 0 and np.all(at >= 1) and np.all(np.diff(below) >= at[:-1]))
        if not ordered or not counted or below[-1] + at[-1] != self.num_scores:
            raise PolicyError(
                "quantile table: values must increase, and num_below and num_at count scores up to num_scores. "
                "Make it again with QuantileTable.from_scores."
            )

    @classmethod
    def from_scores(cls, p_weak: ArrayLike, num_quantiles: int = 1_000) -> "QuantileTable":
        """The table of a calibration sample. Raises PolicyError when it is empty, or has NaN or infinite scores.

        >>> table = QuantileTable.from_scores([0.1] * 12 + [0.4] * 2 + [0.9] * 6)
        >>> table.threshold(0.5)  # 10 of 20 go strong: 10 of the 12 tied at 0.1
        Threshold(value=0.1, tie_share=0.8333333333333334, strong_fraction=0.5)
        """
        scores = _checked_scores(p_weak)
        if not len(scores):
            raise PolicyError("No scores to calibrate on. Score the validation split first; it must have queries.")
        # values rise; counts: how many scores equal each; below: how many are smaller. All (num_distinct,).
        values, counts = np.unique(scores, return_counts=True)
        below = np.cumsum(counts) - counts
        # A score shared by more than 1/num_quantiles of the sample is hit by a quantile, so it is kept with its counts.
        targets = np.linspace(0, len(scores) - 1, num_quantiles + 1).astype(int)
        # For each target rank the distinct value that holds it: the last with below <= rank. Each is kept once.
        kept = np.unique(np.searchsorted(below, targets, side="right") - 1)
        return cls(values[kept].tolist(), below[kept].tolist(), counts[kept].tolist(), len(scores))

    def threshold(self, strong_fraction: float) -> Threshold:
        """The threshold that sends `strong_fraction` of traffic like the calibration sample to the strong model.

        0 and 1 mean never and always, also for scores that the sample does not reach. Raises PolicyError outside [0, 1].
        """
        _check_fraction(strong_fraction)
        if strong_fraction in (0.0, 1.0):
            return Threshold(math.inf if strong_fraction else -math.inf, 0.0, float(strong_fraction))
        # How many of the calibration sample go strong; need not be whole, as tie_share takes a part of one.
        wanted = strong_fraction * self.num_scores
        i = bisect_right(self.num_below, wanted) - 1  # numpy would convert the list first, on every request
        at_or_below = self.num_below[i] + self.num_at[i]
        if wanted <= at_or_below:
            return Threshold(self.values[i], (wanted - self.num_below[i]) / self.num_at[i], strong_fraction)
        # Among scores that the table left out: between two kept values.
        share = (wanted - at_or_below) / (self.num_below[i + 1] - at_or_below)
        return Threshold(self.values[i] + share * (self.values[i + 1] - self.values[i]), 0.0, strong_fraction)


def _check_fraction(strong_fraction: float) -> None:
    if not 0 <= strong_fraction <= 1:  # also refuses NaN
        raise PolicyError(f"strong_fraction is {strong_fraction}, must lie in [0, 1]: 0.3 sends 30% to the strong model.")


def _checked_scores(p_weak: ArrayLike) -> Floats:
    # float64 on purpose: comparing float32 scores with a Python float would round the threshold to float32 first.
    scores = np.asarray(p_weak, dtype=np.float64)
    if scores.ndim != 1:
        raise PolicyError(f"p_weak has shape {scores.shape}, must be one score a query: (num_queries,).")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise PolicyError(f"p_weak is {scores[row]} in row {row}; a query without a finite score cannot be routed. Score it again.")
    return scores


def _check_lengths(scores: Floats, keys: Sequence[str]) -> None:
    if len(scores) != len(keys):
        raise PolicyError(f"{len(scores)} scores but {len(keys)} keys: every query needs both.")
