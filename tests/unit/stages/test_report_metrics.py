"""`evaluation.metrics`: modules of `evaluate` over the greedy answers, in report.json and on the page."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluate_scripts import SAME, make_module, make_words, own_caches
from handmade import make_config, query, sample, write

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ArtifactMissing, ConfigError, EvaluationError, TaskError
from firewall_ray.evaluation.metrics import UndefinedMetricWarning
from firewall_ray.evaluation.table import load_report
from firewall_ray.schemas import LABEL_DESIGNS
from firewall_ray.stages.report import run_report
from firewall_ray.store.layout import ArtifactStore

# Of each query its task, its reference and both models' greedy answers. Those of `facts` have several right answers each.
TEST = {
    "a": ("sums", {"answer": "a b"}, "a", "a b"),
    "b": ("sums", {"answer": "c d"}, "c", "c d"),
    "c": ("sums", {"answer": "e"}, "x", "x"),
    "d": ("facts", {"aliases": ["Rome", "Roma"]}, "Paris", "Roma"),
    "e": ("facts", {"aliases": ["Oslo"]}, "Oslo", "Oslo"),
    "f": ("programs", {"prompt": "def", "test": "assert", "entry_point": "f"}, "", "def"),
}
OTHERS = {"t": "train", "v": "validation"}


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_caches(tmp_path_factory.mktemp("evaluate")), warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        yield


def label(query_id: str, task: str, split: str) -> dict[str, Any]:
    rates = {"pass_rate_weak": 0.25, "pass_rate_strong": 0.5, "greedy_weak": False, "greedy_strong": True}
    row = {"query_id": query_id, "task": task, "split": split, "prompt": f"Question: {query_id}?\nAnswer: ", "num_samples": 4}
    return {**row, **rates, **dict.fromkeys(LABEL_DESIGNS, 0.5)}


def make_run(root: Path, metrics: Any, queries: str = "abcdef") -> tuple[RunConfig, ArtifactStore]:
    """All that a report with metrics reads, and what it must pass over: other splits, failed samples, another order of rows."""
    config = make_config(str(root), evaluation={"num_bootstrap": 10, "metrics": metrics})
    store = ArtifactStore(config.root)
    of_test = {key: TEST[key] for key in queries}
    tests = [label(query_id, task, "test") for query_id, (task, *_) in of_test.items()]
    write(store.labels(), [*tests, *(label(query_id, "sums", split) for query_id, split in OTHERS.items())])
    write(store.scores("soft_block"), [{"query_id": query_id, "p_weak": 0.5} for query_id in [*of_test, *OTHERS]])
    rows = [query(key, task=task, split="test", reference=json.dumps(right)) for key, (task, right, *_) in of_test.items()]
    write(
        store.queries(), [*reversed(rows), query("unlabelled", split="test"), *(query(key, split=s) for key, s in OTHERS.items())]
    )
    for number, model in enumerate(("weak", "strong")):
        answers = [sample(key, ["-"], texts[number], task=task) for key, (task, _, *texts) in of_test.items()]
        failed = sample("unlabelled", None, None, error="no answer")
        write(store.samples(model), [*answers, failed, sample("t", ["-"], "a b"), sample("v", ["-"], "a b")])
    return config, store


def metrics_of(store: ArtifactStore) -> dict[str, Any]:
    return {
        model: {task: m.get("metrics") for task, m in of.items()} for model, of in load_report(store.report())["models"].items()
    }


def test_values_are_those_of_the_module_on_the_test_splits_greedy_answers(tmp_path: Path) -> None:
    module = str(make_words(tmp_path))
    config, store = make_run(
        tmp_path / "root", {"share": {"module": module, "key": "share"}, "length": {"module": module, "key": "words"}}
    )
    run_report(config, store)
    found = metrics_of(store)
    # Shares of the reference's words: weak 1/2, 1/2, 0; strong 1, 1, 0. Of the better alias: weak 0, 1; strong 1, 1.
    assert found["weak"]["sums"] == {
        "share": {"value": pytest.approx(1 / 3), "num_queries": 3},
        "length": {"value": 3, "num_queries": 3},
    }
    assert found["strong"]["sums"]["share"]["value"] == pytest.approx(2 / 3)
    assert found["weak"]["facts"]["share"] == {"value": 0.5, "num_queries": 2}
    assert found["strong"]["facts"]["share"]["value"] == 1
    # Over all tasks there is no number: modules are asked task by task.
    assert found["weak"]["all"] is None


def test_the_value_is_the_one_that_evaluate_itself_computes(tmp_path: Path) -> None:
    import evaluate

    config, store = make_run(
        tmp_path / "root", {"f1": {"module": "firewall_ray.integrations.triviaqa", "key": "f1", "tasks": ["facts"]}}
    )
    run_report(config, store)
    module = evaluate.load(str(Path(__file__).parents[3] / "firewall_ray" / "integrations" / "triviaqa"), keep_in_memory=True)
    expected = module.compute(predictions=["Paris", "Oslo"], references=[["Rome", "Roma"], ["Oslo"]])["f1"]
    assert metrics_of(store)["weak"]["facts"]["f1"]["value"] == expected == 0.5
    assert metrics_of(store)["weak"]["sums"] == {}


def test_a_task_that_a_module_does_not_suit_is_left_out_with_a_notice(tmp_path: Path) -> None:
    config, store = make_run(tmp_path / "root", {"same": {"module": str(make_module(tmp_path, "same"))}})
    run_report(config, store)
    report = load_report(store.report())
    assert metrics_of(store)["strong"] == {
        "all": None,
        "programs": {},
        "facts": {},
        "sums": {"same": {"value": pytest.approx(2 / 3), "num_queries": 3}},
    }
    assert [notice for notice in report["notices"] if "metric same" in notice] == [
        "The metric same is left out of facts: its queries have several right answers each, and the module takes one.",
        "The metric same is left out of programs: the references of its queries are no texts.",
    ]


def test_the_page_has_a_row_a_task_and_a_column_a_model(tmp_path: Path) -> None:
    config, store = make_run(tmp_path / "root", {"same": {"module": str(make_module(tmp_path, "same_page")), "tasks": ["sums"]}})
    run_report(config, store)
    page = Path(store.report().path, "report.html").read_text()
    section = page[page.index("<h2>Greedy answers</h2>") : page.index("<h2>Cost and quality</h2>")]
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in section.split("<tr>")[2:]]
    assert cells == [["facts", "2", "–", "–"], ["programs", "1", "–", "–"], ["sums", "3", "0.000", "0.667"]]
    assert "same<br>weak" in section


def test_without_metrics_nothing_but_labels_and_scores_is_needed(tmp_path: Path) -> None:
    config, store = make_run(tmp_path / "root", {})
    for dataset in (store.queries(), store.samples("weak"), store.samples("strong")):
        dataset.delete()
    run_report(config, store)
    assert metrics_of(store)["weak"]["sums"] is None
    assert "Greedy answers" not in Path(store.report().path, "report.html").read_text()


def test_a_single_task_has_the_metrics_under_its_name(tmp_path: Path) -> None:
    config, store = make_run(tmp_path / "root", {"same": {"module": str(make_module(tmp_path, "same_single"))}}, "abc")
    run_report(config, store)
    assert metrics_of(store)["strong"]["sums"]["same"]["value"] == pytest.approx(2 / 3)


def test_other_samples_and_other_metrics_make_another_report(tmp_path: Path) -> None:
    module = str(make_words(tmp_path))
    config, store = make_run(tmp_path / "root", {"share": {"module": module, "key": "share"}})
    assert run_report(config, store)["action"] == "run"
    assert run_report(config, store)["action"] == "skip"
    write(store.samples("weak"), [sample("more", ["-"], "x")], name="more.parquet")
    assert run_report(config, store)["action"] == "run"
    other, _ = make_run(tmp_path / "root", {"share": {"module": module, "key": "words"}})
    assert run_report(other, store)["action"] == "run"


@pytest.mark.parametrize(("folder", "named"), [("queries", "prepare_queries"), ("samples/strong", "sample")])
def test_what_is_missing_is_named_with_the_job_that_makes_it(tmp_path: Path, folder: str, named: str) -> None:
    config, store = make_run(tmp_path / "root", {"same": {"module": str(make_module(tmp_path, "same_missing"))}})
    {"queries": store.queries(), "samples/strong": store.samples("strong")}[folder].delete()
    with pytest.raises(ArtifactMissing, match=rf"nothing at .*{folder}.*Run: python jobs/{named}\.py"):
        run_report(config, store)


def test_a_labelled_query_without_an_answer_is_named(tmp_path: Path) -> None:
    config, store = make_run(tmp_path / "root", {"same": {"module": str(make_module(tmp_path, "same_part"))}})
    store.samples("weak").delete()
    write(store.samples("weak"), [sample(key, ["-"], None if key == "c" else "x") for key in "abcde"])
    with pytest.raises(ArtifactError, match=r"samples: .*weak lacks 2 of the 6 labelled test queries, such as 'c'"):
        run_report(config, store)
    assert store.report().state() == "missing"


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        ({"key": "rougeL"}, TaskError, r"evaluation\.metrics\.mine: the module's result has no 'rougeL', only \['same'\]"),
        (
            {"tasks": ["sum"]},
            ConfigError,
            r"evaluation\.metrics\.mine\.tasks: there are no test queries of \['sum'\]; there are \['facts'",
        ),
        ({"module": "/nowhere/mine"}, TaskError, r"evaluation\.metrics\.mine: the module cannot be had"),
        ({"arguments": {"fail": True}}, EvaluationError, r"evaluation\.metrics\.mine: the module fails .*ZeroDivisionError"),
    ],
)
def test_a_metric_that_cannot_be_had_is_named_and_leaves_no_report(tmp_path: Path, metric: Any, error: Any, message: str) -> None:
    module = make_module(tmp_path, "mine", f"        1 / (not arguments.get('fail'))\n{SAME}")
    config, store = make_run(tmp_path / "root", {"mine": {"module": str(module), "tasks": ["sums"], **metric}})
    with pytest.raises(error, match=message):
        run_report(config, store)
    assert store.report().state() == "missing"


def test_a_value_that_is_undefined_is_null(tmp_path: Path) -> None:
    module = make_module(tmp_path, "undefined", "        return {'undefined': float('nan')}\n")
    config, store = make_run(tmp_path / "root", {"undefined": {"module": str(module), "tasks": ["sums"]}})
    run_report(config, store)
    assert metrics_of(store)["weak"]["sums"]["undefined"] == {"value": None, "num_queries": 3}


def test_the_job_reads_them_under_a_lease_of_its_own(tmp_path: Path) -> None:
    config, store = make_run(tmp_path / "root", {"same": {"module": str(make_module(tmp_path, "same_job")), "tasks": ["sums"]}})
    (tmp_path / "run.yaml").write_text(config.model_dump_json(exclude_defaults=True))
    repository = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "jobs/report.py", "--config", str(tmp_path / "run.yaml")],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        cwd=repository,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert metrics_of(store)["strong"]["sums"]["same"]["value"] == pytest.approx(2 / 3)
    assert list((tmp_path / "root" / "_jobs").iterdir()) == []


@pytest.mark.parametrize("metrics", [{"code_eval": {}}, {"mine": {"module": "a/code_eval"}}])
def test_programs_are_no_metric_of_the_report(metrics: Any) -> None:
    with pytest.raises(ValueError, match="code_eval executes the models' programs"):
        make_config("r", evaluation={"metrics": metrics})
