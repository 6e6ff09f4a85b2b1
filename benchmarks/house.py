"""The house in numbers: how many rooms, who enters which, and whether anybody climbs the stairs the wrong way. Of any checkout.

A room is a folder of `firewall_ray/`, or `jobs` or `serve_app`; the modules beside the folders are sorted into the rooms where they
belong (`BESIDE`), so that a checkout from before they moved is measured in the same rooms. Everything is read from the sources;
`--load` also imports the stages in a process of their own and counts what came with them.

    python benchmarks/house.py
    python benchmarks/house.py --tree ../before --tree . --load
"""

import ast
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

# From the cellar up; a module may import from its own floor and from those below.
FLOORS = (
    ("contract",),
    ("config", "store"),
    ("tasks", "sandbox", "engines", "judge", "cluster"),
    ("evaluation",),
    ("router",),
    ("stages",),
    ("baselines",),
    ("paper", "relabel", "integrations"),
    ("cli",),
    ("serve_app",),
    ("jobs",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Where modules that lie in no folder belong. errors, schemas, labels and policy are at home there.
BESIDE = {
    "contract": ("errors", "schemas", "labels", "policy", "budget_control", "score_drift"),
    "config": (
        *("config", "config_base", "queries_config", "serving_config", "baselines_config", "paper_config", "relabel_config"),
        "serve_file",
    ),
    "store": ("artifacts", "casting", "leases", "spill", "query_ids"),
    "tasks": ("outcome_rows",),
    "cluster": ("job", "progress", "actor_stage"),
    "stages": ("queries", "sampling", "grading", "labeling", "scoring", "outcomes", "budget_routing"),
    "baselines": ("embeddings", "embedders"),
}
ROOM_OF_MODULE = {f"firewall_ray.{name}": room for room, names in BESIDE.items() for name in names}
OLD_ROOMS = {"execution": "sandbox"}

# The path query -> report: a module a stage, by its name in `stages/` or before it was there.
PATH = (
    ("stages.prepare_queries", "queries"),
    ("stages.sample", "sampling"),
    ("stages.grade", "grading"),
    ("stages.label", "labeling"),
    ("stages.train_router", "router.train"),
    ("stages.score", "scoring"),
    ("stages.report", "evaluation.report"),
)
PRAGMA = re.compile(r"#\s*(noqa|type:|mypy:|ruff:|fmt:|pragma)")
HEADING = re.compile(r"-{8,}$")  # "# Reading -------": where a section begins, no comment on the code


class Edge(NamedTuple):
    importer: str
    imported: str


class Lines(NamedTuple):
    total: int
    comments: int  # alone on their line; headings of sections and pragmas are none
    trailing: int  # at the end of a line of code
    docstrings: int


class House:
    """The sources of one checkout, by the full names of their modules; tests and benchmarks are no part of it."""

    def __init__(self, tree: Path) -> None:
        paths = [path for package in ("firewall_ray", "serve_app", "jobs") for path in sorted((tree / package).rglob("*.py"))]
        self.tree = tree
        self.sources = {module_name(path.relative_to(tree)): path.read_text() for path in paths}
        self.packages = {module_name(path.parent.relative_to(tree)) for path in paths if path.name == "__init__.py"}

    @cached_property
    def top_files(self) -> list[str]:
        return sorted(
            name for name in self.sources if name.count(".") == 1 and name not in self.packages and room_of(name) != "jobs"
        )

    @cached_property
    def edges(self) -> set[Edge]:
        """Who imports whom, inside functions too; a package's own `__init__` counts only where nothing in it is meant."""
        return {
            Edge(name, other) for name, source in self.sources.items() for other in imports(source, self.sources) if other != name
        }

    @cached_property
    def crossing(self) -> set[Edge]:
        """Those from one room to another."""
        return {edge for edge in self.edges if room_of(edge.importer) != room_of(edge.imported)}

    @property
    def doors(self) -> set[Edge]:
        """The pairs of rooms between which something is imported."""
        return {Edge(room_of(edge.importer), room_of(edge.imported)) for edge in self.crossing}

    @property
    def upward(self) -> list[Edge]:
        return sorted(edge for edge in self.crossing if FLOOR_OF[room_of(edge.importer)] < FLOOR_OF[room_of(edge.imported)])

    @property
    def stages(self) -> list[str]:
        return [next(name for name in names if name in self.sources) for names in (_full(each) for each in PATH)]

    @property
    def on_the_path(self) -> set[str]:
        """The modules with code of their own that the stages reach, by imports anywhere in them."""
        reached, left = set(), list(self.stages)
        targets: dict[str, list[str]] = {}
        for edge in self.edges:
            targets.setdefault(edge.importer, []).append(edge.imported)
        while left:
            if (name := left.pop()) not in reached:
                reached.add(name)
                left += targets.get(name, [])
        return reached - self.packages

    def loaded(self) -> int:
        """How many of our modules are there after the stages were imported, in a fresh Python."""
        code = (
            f"import sys, {', '.join(self.stages)}\n"
            "ours = [each for name, each in sys.modules.items() if name.startswith('firewall_ray.')]\n"
            "print(sum(not hasattr(each, '__path__') for each in ours))"  # packages are no modules of their own
        )
        environment = {**os.environ, "PYTHONPATH": str(self.tree)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.tree, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return int(done.stdout.splitlines()[-1])

    def measures(self, *, load: bool) -> dict[str, Any]:
        lines = {name: count_lines(source) for name, source in self.sources.items()}
        total = Lines(*(sum(column) for column in zip(*lines.values(), strict=True)))
        longest = max(lines, key=lambda name: lines[name].total)
        top = [name for name in self.top_files if name.startswith("firewall_ray.")]
        return {
            "files at the top of firewall_ray/": len(top),
            "files at the top of serve_app/": len([name for name in self.top_files if name.startswith("serve_app.")]),
            "files": len(self.sources),
            "modules on the path query -> report": len(self.on_the_path),
            **({"modules that importing its stages loads": self.loaded()} if load else {}),
            "imports between modules": len(self.edges),
            "imports between rooms": len(self.crossing),
            "pairs of rooms with an import": len(self.doors),
            "imports upward": len(self.upward),
            "lines": total.total,
            "lines of the longest file": lines[longest].total,
            "the longest file": longest,
            "comment lines, %": round(100 * total.comments / total.total, 1),
            "lines that end in a comment, %": round(100 * total.trailing / total.total, 1),
            "docstring lines, %": round(100 * total.docstrings / total.total, 1),
        }

    def rooms(self) -> Mapping[str, int]:
        """Files by room, from the roof down."""
        counts = Counter(room_of(name) for name in self.sources if name not in self.packages)
        return {room: counts[room] for room in sorted(counts, key=lambda room: -FLOOR_OF[room])}


def module_name(path: Path) -> str:
    """
    >>> module_name(Path("firewall_ray/tasks/__init__.py"))
    'firewall_ray.tasks'
    """
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    """Raises KeyError for a module that lies in no folder and in no line of `BESIDE`: add it.

    >>> room_of("firewall_ray.tasks.gsm8k"), room_of("firewall_ray.execution.jail"), room_of("serve_app.http.page")
    ('tasks', 'sandbox', 'serve_app')
    """
    package, *rest = name.split(".")
    if package != "firewall_ray":
        return package
    if not rest:
        return "contract"
    if name in ROOM_OF_MODULE and len(rest) == 1:
        return ROOM_OF_MODULE[name]
    room = OLD_ROOMS.get(rest[0], rest[0])
    if room not in FLOOR_OF:
        raise KeyError(f"{name} is in no room that benchmarks/house.py knows: add it to FLOORS or BESIDE")
    return room


def imports(source: str, known: Mapping[str, Any]) -> Iterator[str]:
    """The modules of `known` that a file imports, inside functions too.

    >>> list(imports("from a import b, c\\nimport a.d as x", {"a": 0, "a.b": 0, "a.d": 0}))
    ['a.b', 'a', 'a.d']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:  # of a package a module, or else a name that the module itself defines
                inner = f"{node.module}.{alias.name}"
                if inner in known or node.module in known:
                    yield inner if inner in known else str(node.module)


def count_lines(source: str) -> Lines:
    comments = trailing = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not PRAGMA.match(token.string) and not HEADING.search(token.string):
            alone = token.line[: token.start[1]].isspace() or not token.start[1]
            comments += alone
            trailing += not alone
    docstrings = 0
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            text = node.body[0]
            docstrings += (text.end_lineno or text.lineno) - text.lineno + 1
    return Lines(len(source.splitlines()), comments, trailing, docstrings)


def _full(names: tuple[str, ...]) -> list[str]:
    return [f"firewall_ray.{name}" for name in names]


def main(
    trees: Annotated[list[Path] | None, typer.Option("--tree", exists=True, file_okay=False, help="Checkout; repeatable.")] = None,
    load: Annotated[bool, typer.Option("--load", help="Also import the stages; needs what they need.")] = False,
) -> None:
    """A column a checkout; the upward imports by name; one JSON line last."""
    houses = {str(tree): House(tree.resolve()) for tree in trees or [Path(__file__).parents[1]]}
    measured = {name: house.measures(load=load) for name, house in houses.items()}
    console = Console()
    for title, rows in (("the house", measured), ("files by room", {name: house.rooms() for name, house in houses.items()})):
        table = Table("", *houses, title=title)
        for key in dict.fromkeys(key for row in rows.values() for key in row):
            cells = [row.get(key, "") for row in rows.values()]
            table.add_row(key, *(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells))
        console.print(table)
    for name, house in houses.items():
        for edge in house.upward:
            console.print(f"upward in {name}: {edge.importer} imports {edge.imported}", soft_wrap=True)
    print(json.dumps({"benchmark": "house", "trees": measured}))


if __name__ == "__main__":
    typer.run(main)
