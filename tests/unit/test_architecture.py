"""Imports go down only, floor by floor; what is light stays light; a file stays short."""

import ast
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the cellar up. A module imports from its own floor and from those below.
FLOORS = (
    ("errors", "schemas", "labels", "policy"),
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
# What loads in a moment, on a machine without Ray and without a model: the contract, the config, the storage, the tasks, and what
# stands before a job's first word.
LIGHT = (
    *("firewall_ray.errors", "firewall_ray.schemas", "firewall_ray.labels", "firewall_ray.policy"),
    *("firewall_ray.config", "firewall_ray.store.layout", "firewall_ray.store.dataset", "firewall_ray.store.leases"),
    *("firewall_ray.tasks", "firewall_ray.sandbox", "firewall_ray.judge", "firewall_ray.evaluation.metrics"),
    *("firewall_ray.cluster.connect", "firewall_ray.cluster.display", "firewall_ray.cli"),
)
HEAVY = {"ray", "torch", "vllm", "deepspeed", "transformers", "datasets", "evaluate", "sklearn", "matplotlib"}
MAX_LINES = 300
LONGER = ("firewall_ray.store.dataset",)  # the whole protocol


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports; `from a import b` counts as a, and as a.b where that is a module."""
    tree = ast.parse(path.read_text())
    for node in _outside_functions(tree) if at_import_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names if _is_module(f"{node.module}.{alias.name}"))


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _outside_functions(child)


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def is_light(name: str) -> bool:
    return any(name == light or name.startswith(f"{light}.") for light in LIGHT)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


LIBRARY = modules("firewall_ray")


def room(name: str) -> str:
    """Of a module: `serve_app`, `jobs`, or what follows in the library's name."""
    package, *rest = name.split(".")
    return rest[0] if package == "firewall_ray" and rest else package


def floor(name: str) -> int:
    (number,) = [number for number, rooms in enumerate(FLOORS) if room(name) in rooms]
    return number


def crossings() -> set[tuple[str, str]]:
    """Who imports whom, from one room to another, inside functions too. The package itself, with its version, is nobody's room."""
    paths = modules("firewall_ray", "serve_app", "jobs")
    ours = {module_name(path) for path in paths}
    edges = {(module_name(path), name) for path in paths for name in imported(path) if name in ours and name != "firewall_ray"}
    return {(name, other) for name, other in edges if room(name) != room(other)}


def test_imports_go_down_only() -> None:
    assert sorted((name, other) for name, other in crossings() if floor(name) < floor(other)) == []


def test_the_house_is_measured_by_the_same_floors() -> None:
    """benchmarks/house.py has a list of its own, since it measures other checkouts too; only what it calls the contract differs."""
    assert runpy.run_path(str(ROOT / "benchmarks" / "house.py"))["FLOORS"][1:] == FLOORS[1:]


def test_rooms_of_one_floor_do_not_import_each_other() -> None:
    """Not both ways: who would be read first?"""
    doors = {(room(name), room(other)) for name, other in crossings()}
    assert sorted((one, other) for one, other in doors if (other, one) in doors) == []


def test_the_hallway_is_all_but_empty() -> None:
    assert len(list((ROOT / "firewall_ray").glob("*.py"))) <= 6


@pytest.mark.parametrize("path", modules("firewall_ray", "serve_app"), ids=relative)
def test_the_packages_never_import_what_stands_beside_them(path: Path) -> None:
    assert not [name for name in imported(path) if name.split(".")[0] in ("jobs", "tests", "benchmarks", "quickstart")]


# The floors of serve_app, from the cellar up: what processes hand to each other; the parts; the story that is told with them; who
# may come in; what is described in the driver and typed by people. A room's name stands for its modules.
SERVE_FLOORS = (
    (
        *("errors", "body", "calls", "crossing", "events", "logs", "outages", "suspects"),
        *("serve_settings", "otlp", "tracing"),
        *("metrics", "api_keys", "models.answers", "routing.decision", "shared.client", "shared.minutes"),
    ),
    ("routing", "models", "apis"),
    ("recording", "shared", "money", "work", "limits", "texts"),
    ("gateway",),
    ("http",),
    ("app",),
    ("__main__",),
    ("deploy",),
)
# What a replica's process loads of serve_app besides the module of the deployment itself. Nobody else's code is among it.
SERVE_PROCESSES = {
    "routing.replica": {
        *(
            "routing.arms",
            "routing.budget",
            "routing.decision",
            "routing.drift",
            "routing.last_applied",
            "routing.pace",
            "routing.slices",
        ),
        *("routing.spans", "metrics", "serve_settings", "crossing", "logs", "otlp", "tracing"),
    },
    "models.replica": {
        *("models.answers", "models.chats", "models.engine", "models.gpu_time", "models.spans"),
        *("errors", "crossing", "logs", "otlp", "tracing"),
    },
    "shared.replica": {
        *("routing.conversations", "routing.request", "routing.decision", "shared.client", "shared.minutes", "calls", "errors"),
        *("money.keeper", "money.files", "money.ledger", "money.periods", "metrics"),
    },
}
NOT_IN_THE_INGRESS = {
    "app",
    "deploy",
    "__main__",
    "routing.replica",
    "routing.arms",
    "routing.budget",
    "routing.drift",
    "routing.last_applied",
    "routing.slices",
    "routing.spans",
    "shared.replica",
    "money.keeper",
    "models.replica",
    "models.engine",
    "models.spans",
    "models.deployment",
}


def serve_floor(name: str) -> int:
    """Of a module of serve_app, named from there; a module of its own line before the room that it lies in."""
    rooms = {each: floor for floor, names in enumerate(SERVE_FLOORS) for each in names}
    return rooms[name] if name in rooms else rooms[name.split(".")[0]]


def serve_imports() -> dict[str, set[str]]:
    """The modules of serve_app, named from there, and what each imports of the others."""
    known = {module_name(path).removeprefix("serve_app."): path for path in modules("serve_app") if path.name != "__init__.py"}
    return {name: {n.removeprefix("serve_app.") for n in imported(path)} & known.keys() for name, path in known.items()}


def test_within_the_serving_application_imports_go_down_only() -> None:
    edges = serve_imports()
    upward = [(name, other) for name, others in edges.items() for other in others if serve_floor(name) < serve_floor(other)]
    assert upward == []
    # From room to room on one floor would be a circle waiting to be closed.
    rooms = {"routing", "models"}
    across = [
        (name, other) for name, others in edges.items() for other in others if {name.split(".")[0], other.split(".")[0]} == rooms
    ]
    assert across == []


def serve_closure(name: str) -> set[str]:
    """Everything that a module of serve_app imports of it, directly or not."""
    edges, reached, left = serve_imports(), set[str](), [name]
    while left:
        for other in edges[left.pop()] - reached:
            reached.add(other)
            left.append(other)
    return reached


@pytest.mark.parametrize("replica", SERVE_PROCESSES)
def test_a_replica_loads_no_code_of_the_ingress(replica: str) -> None:
    assert serve_closure(replica) == SERVE_PROCESSES[replica]


def test_the_ingress_loads_no_code_of_the_driver_and_of_other_replicas() -> None:
    assert serve_closure("http.ingress") & NOT_IN_THE_INGRESS == set()


@pytest.mark.parametrize("path", [p for p in LIBRARY if is_light(module_name(p))], ids=relative)
def test_light_modules_never_import_what_is_heavy_at_import(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path, at_import_only=True)} & HEAVY == set()


def test_labels_need_numpy_and_nothing_else() -> None:
    assert set(imported(ROOT / "firewall_ray" / "labels.py")) == {"numpy", "numpy.typing", "firewall_ray.errors"}


def test_what_is_light_loads_nothing_heavy_through_a_back_door() -> None:
    """All of it in one process, a module after the other: what none of them loads, each alone does not load either."""
    jobs = [f"jobs.{path.stem}" for path in modules("jobs") if path.stem != "submit"]
    names = [
        "firewall_ray",
        *LIGHT,
        "firewall_ray.stages",
        "firewall_ray.stages.prepare_queries",
        "firewall_ray.stages.label",
        *jobs,
    ]
    code = "\n".join(
        [
            "import importlib, sys",
            f"for name in {names!r}:",
            "    importlib.import_module(name)",
            f"    if loaded := sorted({HEAVY!r} & sys.modules.keys()):",
            "        sys.exit(f'{name} loads {loaded}')",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_has_no_circle_of_imports() -> None:
    known = {module_name(path): path for path in LIBRARY}
    edges = {name: {n for n in imported(path, at_import_only=True) if n in known and n != name} for name, path in known.items()}
    while True:  # Take away what imports nothing that is left; in the end nothing is left, or a circle.
        leaves = {name for name, targets in edges.items() if not targets & edges.keys()}
        if not leaves:
            break
        edges = {name: targets for name, targets in edges.items() if name not in leaves}
    assert edges == {}


@pytest.mark.parametrize("path", modules("firewall_ray", "serve_app", "jobs"), ids=relative)
def test_nothing_happens_at_import(path: Path) -> None:
    """Top-level statements define; the only one that acts is the `__main__` guard."""
    for node in ast.parse(path.read_text()).body:
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        defines = isinstance(
            node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
        )
        assert guard or docstring or defines, f"{relative(path)}:{node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("path", modules("firewall_ray", "serve_app", "jobs"), ids=relative)
def test_a_file_holds_one_idea_and_so_stays_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= (460 if module_name(path) in LONGER else MAX_LINES)
    assert not lines or lines[0].startswith('"""'), "the first line says what the file is for"
