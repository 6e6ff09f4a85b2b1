"""The paper's own numbers: copied right, and what they say of its APGR."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from firewall_ray.paper.claims import denied_in_print, published_difference
from firewall_ray.paper.published import implied_apgr, implied_ends, inconsistencies, published
from firewall_ray.paper.rows import ROWS
from firewall_ray.paper.statements import STATEMENTS


def test_every_cell_is_as_it_was_read_from_the_paper(shared_data: Path) -> None:
    paper = json.loads((shared_data.parent / "paper" / "published.json").read_text())
    ours = published()
    assert [*ours.datasets] == paper["datasets"]
    assert ours.rows == {name: paper[name] for name in ("table_1", "table_2", "table_3", "table_4")}
    assert sum(len(values) for table in ours.rows.values() for values in table.values()) == 228
    assert ours.gains_in_text == {table: paper["text_claims_APGR_gain"][table] for table in ("table_1", "table_2")}


def test_a_cell_is_found_by_its_names() -> None:
    paper = published()
    assert paper.cell("table_1", "Ours (Soft Block)", "GSM8K", "50%") == 22.15
    assert paper.cell("table_4", "Hard Blocking (Causal)", "HumanEval", "APGR") == 54.44
    assert paper.cell("table_4", "Hard Blocking (Causal)", "HumanEval", "50%") is None


@pytest.mark.parametrize(
    ("dataset", "weak", "strong"), [("TriviaQA", 9.94, 60.0), ("GSM8K", 8.05, 26.26), ("HumanEval", 6.8, 13.4)]
)
def test_linear_interpolation_implies_the_two_models_pass_rates(dataset: str, weak: float, strong: float) -> None:
    assert implied_ends("table_1", dataset) == pytest.approx((weak, strong), abs=0.02)


@pytest.mark.parametrize("dataset", ["TriviaQA", "GSM8K"])
def test_the_papers_apgr_is_the_plain_mean_and_not_the_trapezoid(dataset: str) -> None:
    """PCHIP through the printed pass rates, worked out here: mean absolute distance from the printed APGR over Tables 1 and 3."""
    paper, fractions = published(), np.linspace(0, 1, 11)
    weak, strong = implied_ends("table_1", dataset)
    residuals: dict[str, list[float]] = {"mean": [], "trapezoid": []}
    for table in ("table_1", "table_3"):
        for method in paper.rows[table]:
            if method == "Linear Interpolation":
                continue  # 50 by either
            printed, *rates = (paper.cell(table, method, dataset, column) for column in paper.columns)
            curve = PchipInterpolator([0, 0.2, 0.5, 0.8, 1], [weak, *rates, strong])(fractions)
            recovered = 100 * (curve - weak) / (strong - weak)
            residuals["mean"].append(recovered.mean() - printed)
            residuals["trapezoid"].append(np.trapezoid(recovered, fractions) - printed)
            assert implied_apgr(rates, (weak, strong)) == pytest.approx(recovered.mean())  # type: ignore[arg-type]
    distance = {name: np.abs(values).mean() for name, values in residuals.items()}
    assert distance["mean"] < 0.2 < distance["trapezoid"]


def test_every_row_of_the_paper_has_a_router_and_every_statement_has_its_rows() -> None:
    paper = published()
    assert {table: [*rows] for table, rows in ROWS.items()} == {table: [*rows] for table, rows in paper.rows.items()}
    for statement in STATEMENTS:
        for table, method in (*statement.ahead, *statement.behind):
            assert method in paper.rows[table]


def test_the_differences_in_print_are_those_of_the_text() -> None:
    best = {statement.section[-7:]: statement for statement in STATEMENTS if statement.text.startswith("The better of ours")}
    expected = {"Table 1": (3.42, 5.29, 2.42), "Table 2": (4.16, 4.88, 0.43)}  # the text has 3.72 for the first
    for table, gains in expected.items():
        found = [100 * published_difference(best[table], dataset) for dataset in published().datasets]
        assert found == pytest.approx(gains, abs=1e-9)


def test_where_the_paper_does_not_fit_itself_is_found_from_its_numbers() -> None:
    found = "\n".join(inconsistencies())
    assert "Table 1, TriviaQA: the text names a gain of 3.72 points, its rows give 3.42." in found
    assert "5.29" not in found
    assert "Hybrid LLM, GSM8K: pass rates of Table 2 are Table 1's" in found
    assert "Table 2, RouteLLM (MF), GSM8K: the pass rates imply an APGR near 61.2, printed is 49.11." in found
    denied = "\n".join(denied_in_print())
    assert '"Hard Block is ahead of the strong model\'s pass rate" is -1.15 points' in denied
    assert '"Hard labels are better than the weak model\'s pass rate" is -2.79 points' in denied
