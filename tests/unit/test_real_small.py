"""The real pair's kept grades: whole, without texts, and the numbers that docs/real_models.md quotes of them."""

import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from firewall_ray.schemas import GRADES, VERDICTS
from real_small.report import ASKED, MODELS, graded

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("key", MODELS)
def test_every_question_that_was_asked_has_eight_verdicts_and_no_text_is_kept(key: str) -> None:
    asked, grades = pq.read_table(ASKED), pq.read_table(graded(key))
    assert asked.column_names == ["query_id", "task", "split"]
    assert grades.schema.names == GRADES.names
    assert sorted(grades["query_id"].to_pylist()) == sorted(asked["query_id"].to_pylist())
    for row in grades.to_pylist():
        assert len(row["correct"]) == len(row["verdicts"]) == 8
        assert set(row["verdicts"]) <= set(VERDICTS)
        assert [verdict == "right" for verdict in row["verdicts"]] == row["correct"]


def test_the_documentation_quotes_the_grades() -> None:
    """A row a model and task: samples, then the shares of the four verdicts, then the greedy answers that are right, in percent."""
    found = {}
    for key in MODELS:
        rows = pq.read_table(graded(key)).to_pylist()
        for task in {row["task"] for row in rows}:
            of_task = [row for row in rows if row["task"] == task]
            counts = Counter(verdict for row in of_task for verdict in row["verdicts"])
            shares = [100 * counts[verdict] / counts.total() for verdict in VERDICTS]
            greedy = 100 * sum(row["greedy_correct"] for row in of_task) / len(of_task)
            found[key, task] = [len(of_task), *(round(share, 1) for share in (*shares, greedy))]
    text = (REPOSITORY / "docs" / "real_models.md").read_text()
    quoted = re.findall(r"^\| (weak|strong) \| (\w+) \|((?: [\d.]+ \|){6})$", text, re.MULTILINE)
    assert {(key, task): [float(n) for n in numbers.split("|")[:-1]] for key, task, numbers in quoted} == found
