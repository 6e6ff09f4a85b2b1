"""A table: cells of numbers with intervals, and how it reads as Markdown, CSV and LaTeX.

Rates are shown in percent, as the paper prints them; CSV keeps them as rates in [0, 1], one column each for value and bounds.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A rate with its interval; None where it is undefined, or there is none. signed: a difference. digits: shown, of percent."""

    value: float | None
    low: float | None = None
    high: float | None = None
    signed: bool = False
    digits: int = 1

    @classmethod
    def of(cls, metric: Mapping[str, Any] | None, *, signed: bool = False) -> "Cell":
        """From a metric of report.json: `{"value", "low", "high"}`; None is an empty cell."""
        return cls(None) if metric is None else cls(metric["value"], metric["low"], metric["high"], signed)

    def number(self) -> str:
        """The value in percent.

        >>> Cell(0.55, 0.5, 0.6).number(), Cell(0.0342, signed=True).number(), Cell(None).number()
        ('55.0', '+3.4', '')
        """
        return self._percent(self.value)

    def interval(self) -> str:
        """The bounds in percent, or nothing.

        >>> Cell(0.55, 0.5, 0.6).interval()
        '[50.0, 60.0]'
        """
        if self.low is None or self.high is None:
            return ""
        return f"[{self._percent(self.low)}, {self._percent(self.high)}]"

    def _percent(self, rate: float | None) -> str:
        return "" if rate is None else f"{100 * rate:{'+' if self.signed else ''}.{self.digits}f}"


Row = tuple[tuple[str, ...], tuple[Cell, ...]]  # what the row is of; its numbers


@dataclass(frozen=True)
class Table:
    """keys: names of the text columns on the left. columns: names of the numbers. notes: what a reader must know below it.

    best: (row, column) of the cells, from 0, that stand in bold. groups: title and number of columns of the headers above the
    columns, from left to right; a column's name begins with its group's, which HTML and LaTeX do not repeat.
    """

    name: str
    title: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    best: frozenset[tuple[int, int]] = frozenset()
    groups: tuple[tuple[str, int], ...] = ()

    @property
    def short_columns(self) -> tuple[str, ...]:
        """The columns' names below their groups': "TriviaQA APGR" is "APGR"."""
        return tuple(column.rpartition(" ")[2] for column in self.columns) if self.groups else self.columns


def markdown(table: Table) -> str:
    """A GitHub table under its title, its notes below."""
    header = [*table.keys, *table.columns]
    lines = [f"## {table.title}", "", _pipes(header), _pipes(["---"] * len(table.keys) + ["---:"] * len(table.columns))]
    for number, (texts, cells) in enumerate(table.rows):
        # A name is the user's and may hold a pipe, which would begin a new column.
        escaped = [text.replace("|", "\\|") for text in texts]
        shown = [f"**{cell.number()}**" if (number, column) in table.best else cell.number() for column, cell in enumerate(cells)]
        lines.append(_pipes([*escaped, *(f"{text} {cell.interval()}".strip() for text, cell in zip(shown, cells, strict=True))]))
    return "\n".join([*lines, "", *(f"{note}\n" for note in table.notes)])


def comma_separated(table: Table) -> str:
    """One row a row; for every number `<column>`, `<column> low` and `<column> high`, as rates, empty where undefined."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*table.keys, *(f"{column}{end}" for column in table.columns for end in ("", " low", " high"))])
    for texts, cells in table.rows:
        # repr: read back, it is the same float.
        numbers = [number for cell in cells for number in (cell.value, cell.low, cell.high)]
        writer.writerow([*texts, *("" if number is None else repr(number) for number in numbers)])
    return buffer.getvalue()


def latex(table: Table) -> str:
    """A `table*` with booktabs rules (\\usepackage{booktabs}); a rule where the first column changes."""
    lines = [
        r"\begin{table*}",
        r"\centering\scriptsize",
        rf"\begin{{tabular}}{{{'l' * len(table.keys)}{'r' * len(table.columns)}}}",
        r"\toprule",
        *_tex_groups(table),
        _ampersands([*map(_tex, table.keys), *map(_tex, table.short_columns)]),
    ]
    # The first column is the task, pair or label: what a reader compares within.
    group = None
    for number, (texts, cells) in enumerate(table.rows):
        if group is None or (texts[0] != group and len(texts) > 1):
            lines.append(r"\midrule")
            group = texts[0]
        numbers = []
        for column, cell in enumerate(cells):
            shown = rf"\textbf{{{cell.number()}}}" if (number, column) in table.best else cell.number()
            numbers.append(rf"{shown} {{\tiny {cell.interval()}}}" if cell.interval() else shown)
        lines.append(_ampersands([*map(_tex, texts), *numbers]))
    caption = " ".join([f"{table.title}.", *table.notes])
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{_tex(caption)}}}", rf"\label{{tab:{table.name}}}", r"\end{table*}"]
    return "\n".join([*lines, ""])


def _tex_groups(table: Table) -> list[str]:
    """The header line of the groups, if there are any."""
    if not table.groups:
        return []
    spans = [rf"\multicolumn{{{width}}}{{c}}{{{_tex(title)}}}" for title, width in table.groups]
    return [_ampersands([*("" for _ in table.keys), *spans])]


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _tex(text: str) -> str:
    r"""Text with LaTeX's special characters escaped.

    >>> _tex("soft_block & 50%")
    'soft\\_block \\& 50\\%'
    """
    # First, since the replacements below bring backslashes of their own.
    text = text.replace("\\", r"\textbackslash ")
    return re.sub(r"([&%$#_{}])", r"\\\1", text).replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
