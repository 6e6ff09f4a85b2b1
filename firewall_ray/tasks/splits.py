"""Which split a question is in, where its source does not say, and which questions of a test split stay when it is cut.

A split is drawn by a seeded hash of the question. Pure, so it is the same in every run and process, and a question that is added
moves no other. Shares and folds are therefore met up to chance: a share s of N questions has a standard deviation of
sqrt(s (1 - s) / N).
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from firewall_ray.config.queries import SplitsConfig
from firewall_ray.policy import tie_hash

Row = TypeVar("Row")


def draw_test(rows: Sequence[Row], number: int | None, seed: int) -> Sequence[Row]:
    """`number` of the rows, drawn by the seed; all of them in their own order where `number` is None or not smaller.

    Not the first rows: a data set may be sorted, by source or by difficulty. A larger number has all rows of a smaller one.

    >>> draw_test("abcdef", 2, seed=0), draw_test("abcdef", 3, seed=0), draw_test("abc", None, seed=0)
    (['d', 'f'], ['d', 'f', 'a'], 'abc')
    """
    if number is None or number >= len(rows):
        return rows
    return random.Random(seed).sample(rows, len(rows))[:number]


def draw_split(question: str, splits: SplitsConfig) -> str:
    """train, validation or test.

    With k folds the questions fall into k equal parts, of which part `fold` is test: over fold = 0 .. k - 1 each question is
    test exactly once.

    >>> [draw_split("How many?", SplitsConfig(folds=3, fold=fold)) for fold in range(3)]
    ['train', 'test', 'train']
    """
    place = tie_hash(question, splits.seed)  # uniform in [0, 1)
    if splits.folds is None:
        is_test = place < splits.test
        place = (place - splits.test) / (1 - splits.test) if not is_test else place  # uniform again, among the rest
    else:
        # The whole part is the fold, uniform in 0 .. k - 1; what is left is uniform in [0, 1) again, for validation.
        place *= splits.folds
        is_test = int(place) == splits.fold
        place -= int(place)
    if is_test:
        return "test"
    return "validation" if place < splits.validation else "train"
