"""benchmarks/house.py on a house of a few rooms, counted by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

FILES = {
    "firewall_ray/__init__.py": "",
    "firewall_ray/errors.py": '"""What goes wrong.\n\nNothing here.\n"""\n',
    "firewall_ray/artifacts.py": "from firewall_ray import errors\n",
    "firewall_ray/queries.py": "import firewall_ray.artifacts\n",
    "firewall_ray/sampling.py": "from firewall_ray.artifacts import Dataset\nfrom firewall_ray.queries import read\n",
    "firewall_ray/grading.py": "",
    "firewall_ray/labeling.py": "",
    "firewall_ray/scoring.py": "",
    "firewall_ray/policy.py": "def late():\n    from firewall_ray.baselines import knn\n",
    "firewall_ray/baselines/__init__.py": "",
    "firewall_ray/baselines/knn.py": "# Parts -------------\n# why\nx = 1  # surprising\ny = 2  # noqa: E501\n",
    "firewall_ray/evaluation/report.py": "",
    "firewall_ray/router/train.py": "from firewall_ray.policy import late\n",
    "serve_app/app.py": "from firewall_ray.policy import late\n",
    "jobs/sample.py": "from firewall_ray.sampling import run\n",
}


def measured(tree: Path) -> dict[str, Any]:
    command = [sys.executable, "benchmarks/house.py", "--tree", str(tree)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1])["trees"][str(tree)])


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_house_of_a_few_rooms_is_measured_as_by_hand(tmp_path: Path) -> None:
    found = measured(write_tree(tmp_path, FILES))
    # errors, artifacts, queries, sampling, grading, labeling, scoring, policy
    assert found["files at the top of firewall_ray/"] == 8
    # artifacts > errors, queries > artifacts, sampling > artifacts, sampling > queries, policy > knn, train > policy, app > policy,
    # jobs > sampling; all but sampling > queries go to another room
    assert (found["imports between modules"], found["imports between rooms"]) == (8, 7)
    # store > contract, stages > store, contract > baselines, router > contract, serve_app > contract, jobs > stages
    assert found["pairs of rooms with an import"] == 6
    assert found["imports upward"] == 1
    # the seven stages; artifacts and errors; policy and, from within its function, knn
    assert found["modules on the path query -> report"] == 11
    assert found["lines of the longest file"] == 4
    # of 17 lines: one comment (a heading is none), one at the end of a line (a pragma is none), four of a docstring
    assert found["lines"] == 17
    assert [found[key] for key in ("comment lines, %", "lines that end in a comment, %", "docstring lines, %")] == [5.9, 5.9, 23.5]


def test_files_moved_into_their_rooms_change_the_number_of_files_at_the_top_and_nothing_else(tmp_path: Path) -> None:
    moves = {"artifacts": "store.dataset", "queries": "stages.prepare_queries", "sampling": "stages.sample"}
    after = {}
    for name, text in FILES.items():
        for old, new in moves.items():
            name = name.replace(f"firewall_ray/{old}.py", f"firewall_ray/{new.replace('.', '/')}.py")
            text = text.replace(f"firewall_ray.{old}", f"firewall_ray.{new}")
        after[name] = text
    before, now = measured(write_tree(tmp_path / "before", FILES)), measured(write_tree(tmp_path / "after", after))
    assert now == {**before, "files at the top of firewall_ray/": 5}
