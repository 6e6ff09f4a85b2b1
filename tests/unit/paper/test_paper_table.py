import csv
import io
import re

from firewall_ray.paper.table import Cell, Table, comma_separated, latex, markdown

TABLE = Table(
    name="table_9",
    title="Table 9: 50% & more",
    keys=("task", "router"),
    columns=("PR@20%", "APGR"),
    rows=(
        (("a_task", "one|two"), (Cell(0.5, 0.4, 0.6), Cell(-0.0312, -0.05, 0.01, signed=True))),
        (("a_task", "comma, quote\""), (Cell(None), Cell(0.667))),
        (("b", "x"), (Cell(1.0, 1.0, 1.0), Cell(0.0))),
    ),
    notes=("In percent.",),
    best=frozenset({(0, 1)}),
)  # fmt: skip


def test_markdown_shows_percent_with_its_interval() -> None:
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "## Table 9: 50% & more"
    assert lines[2:4] == ["| task | router | PR@20% | APGR |", "| --- | --- | ---: | ---: |"]
    assert lines[4] == r"| a_task | one\|two | 50.0 [40.0, 60.0] | **-3.1** [-5.0, +1.0] |"
    assert lines[5] == '| a_task | comma, quote" |  | 66.7 |'
    assert "In percent." in lines


def test_csv_keeps_every_digit_and_the_bounds() -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(TABLE))))
    assert list(rows[0]) == ["task", "router", "PR@20%", "PR@20% low", "PR@20% high", "APGR", "APGR low", "APGR high"]
    assert (rows[0]["APGR"], rows[0]["APGR high"]) == ("-0.0312", "0.01")
    assert (rows[1]["router"], rows[1]["PR@20%"], rows[1]["APGR"], rows[1]["APGR low"]) == ('comma, quote"', "", "0.667", "")


def test_latex_escapes_names_and_has_as_many_cells_in_every_row() -> None:
    text = latex(TABLE)
    assert r"\begin{tabular}{llrr}" in text
    assert r"a\_task & one|two & 50.0 {\tiny [40.0, 60.0]} & \textbf{-3.1} {\tiny [-5.0, +1.0]} \\" in text
    assert r"\caption{Table 9: 50\% \& more. In percent.}" in text
    assert text.count(r"\midrule") == 2  # one above each task
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {3}
    assert text.count(r"\begin") == text.count(r"\end")
