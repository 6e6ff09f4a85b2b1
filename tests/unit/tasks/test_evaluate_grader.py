"""The grader `evaluate:<module>`, with modules made by hand and with this package's own; no network."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from evaluate_scripts import TEXT, TEXTS, WORDS, make_module, make_words, own_caches
from handmade import make_config, sample

from firewall_ray.config.queries import CustomTaskOptions
from firewall_ray.config.run import load_config
from firewall_ray.errors import ConfigError, TaskError
from firewall_ray.schemas import SAMPLES
from firewall_ray.stages.grade import grade_batch
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import known_tasks
from firewall_ray.tasks.custom import CustomTask
from firewall_ray.tasks.graders import EVALUATE_VERDICT_S, get_grader, verdict_s

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_caches(tmp_path_factory.mktemp("evaluate")):
        yield


def make_task(module: Path | str, **asked: Any) -> tuple[CustomTask, dict[str, Any]]:
    options = CustomTaskOptions(source="-", grader=f"evaluate:{module}", evaluate=asked or None)
    return CustomTask("capitals", options), options.model_dump(mode="json")


def grade(completion: str, answer: Any, module: Path | str, **asked: Any) -> bool:
    task, options = make_task(module, **asked)
    return task.grade(completion, {"answer": answer}, options)


# Verdicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "threshold", "right"),
    [
        ("a b c d", 1.0, True),
        ("a b c", 1.0, False),
        ("a b c", 0.75, True),  # 3 of the 4 words: at the threshold is right
        ("a b c", 0.7500001, False),
        ("x", 0.0, True),
        ("x", 0.25, False),
    ],
)
def test_a_score_at_the_threshold_or_above_is_right(tmp_path: Path, completion: str, threshold: float, right: bool) -> None:
    assert grade(completion, "a b c d", make_words(tmp_path), key="share", threshold=threshold) is right


def test_the_only_number_is_the_score_and_so_is_the_one_that_is_called_as_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert grade("Paris", "Paris", make_module(tmp_path, "only"))
    assert not grade("Rome", "Paris", make_module(tmp_path, "only_of_file") / "only_of_file.py")
    both = make_module(tmp_path / "my_metrics", "bleu", "        return {'other': 0.0, 'bleu': float(predictions == references)}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in (both, both / "bleu.py", "my_metrics.bleu"):
        assert grade("Paris", "Paris", name)


def test_one_number_an_answer_is_a_score_as_bertscore_gives_it(tmp_path: Path) -> None:
    listed = make_module(tmp_path, "listed", "        return {'f1': [0.75 for _ in predictions], 'hash': 'x'}\n")
    assert grade("Paris", "Rome", listed, key="f1", threshold=0.75)
    assert not grade("Paris", "Rome", listed, key="f1", threshold=0.76)


def test_of_several_references_any_may_be_met(tmp_path: Path) -> None:
    one_reference, lists = make_module(tmp_path, "one_reference"), make_words(tmp_path)
    for module, asked in ((one_reference, {}), (lists, {"key": "share"})):
        assert grade("Roma", ["Rome", "Roma"], module, **asked)
        assert not grade("Paris", ["Rome", "Roma"], module, **asked)
        assert grade("18", 18, module, **asked)


def test_arguments_reach_the_module(tmp_path: Path) -> None:
    compute = (
        "        p, r = predictions[0], references[0]\n        return {'lower': float((p.lower() if arguments else p) == r)}\n"
    )
    module = make_module(tmp_path, "lower", compute)
    assert not grade("PARIS", "paris", module)
    assert grade("PARIS", "paris", module, arguments={"ignore_case": True})


def test_a_list_of_candidates_and_a_pair_of_results_are_read_as_code_eval_has_them(tmp_path: Path) -> None:
    compute = "        return {'pass@1': float(predictions[0] == [references[0]])}, {0: 'passed'}\n"
    module = make_module(tmp_path, "candidates", compute, f"{{'predictions': {TEXTS}, 'references': {TEXT}}}")
    assert grade("x", "x", module)
    assert not grade("x", "y", module)


def test_a_module_without_references_judges_the_answer_alone(tmp_path: Path) -> None:
    module = make_module(
        tmp_path, "polite", "        return {'polite': float('please' in predictions[0])}\n", f"{{'predictions': {TEXT}}}"
    )
    assert grade("yes please", None, module)
    assert not grade("yes", {"any": "thing"}, module)


def test_a_blank_completion_is_wrong_and_not_asked_about(tmp_path: Path) -> None:
    module = make_module(tmp_path, "divides", "        return {'divides': 1 / len(predictions[0].strip())}\n")
    assert not grade(" \n", "x", module, threshold=-1.0)
    assert grade("x", "x", module)


def test_nan_is_an_error_of_the_row(tmp_path: Path) -> None:
    module = make_module(tmp_path, "undefined", "        return {'undefined': float('nan')}\n")
    with pytest.raises(ValueError, match="undefined gives NaN"):
        grade("x", "y", module)


@pytest.mark.parametrize("name", ["firewall_ray.integrations.triviaqa", "firewall_ray/integrations/triviaqa"])
def test_the_packages_own_modules_are_graders_by_either_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert grade("The Beatles!", ["beatles", "Fab Four"], name, key="exact_match")
    # Without articles "fab band": no word in common with "beatles", and with "fab four" one, precision and recall 1/2.
    assert grade("a fab band", ["Beatles", "Fab Four"], name, key="f1", threshold=0.5)
    assert not grade("a fab band", ["Beatles", "Fab Four"], name, key="f1", threshold=0.51)


def test_the_modules_with_a_package_of_their_own_are_loaded_with_their_helpers(tmp_path: Path) -> None:
    module = make_module(tmp_path, "helped", "        return {'helped': double(0.5)}\n", imports="from .helper import double")
    (module / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    assert grade("x", "y", module)


# What is wrong is said before anything is sampled --------------------------------------------------------------------


def load(folder: Path, module: Path | str, answer: Any = "a b", **asked: Any) -> list[Any]:
    (folder / "rows.jsonl").write_text(json.dumps({"question": "Which?", "answer": answer}) + "\n")
    options = CustomTaskOptions(source=str(folder / "rows.jsonl"), grader=f"evaluate:{module}", evaluate=asked or None)
    return list(CustomTask("capitals", options).load(options.model_dump(mode="json")))


def test_a_module_that_fits_prepares_queries_like_any_grader(tmp_path: Path) -> None:
    (query,) = load(tmp_path, make_words(tmp_path), key="share")
    assert json.loads(query.reference) == {"answer": "a b"}


def test_a_key_that_the_result_lacks_names_those_that_it_has(tmp_path: Path) -> None:
    module = make_words(tmp_path)
    with pytest.raises(TaskError, match=r"grader: 'evaluate:.*words'.* has no 'rougeL', only \['share', 'words'\].*`key`"):
        load(tmp_path, module, key="rougeL")
    with pytest.raises(TaskError, match=r"has no 'words_two', only \['share', 'words'\]"):
        load(tmp_path, make_module(tmp_path, "words_two", WORDS, f"{{'predictions': {TEXT}, 'references': {TEXTS}}}"))


@pytest.mark.parametrize("value", ["'high'", "None", "[]", "{'low': 1}", "[[0.5]]"])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(TaskError, match=r"grader: .*'odd' of the module's result is .*must be a number"):
        load(tmp_path, make_module(tmp_path, "odd", f"        return {{'odd': {value}}}\n"))


@pytest.mark.parametrize(
    "features",
    [
        "{'predictions': datasets.Value('int32'), 'references': datasets.Value('int32')}",
        f"{{'predictions': {TEXT}, 'references': {TEXT}, 'sources': {TEXT}}}",
        f"{{'predictions': {{'id': {TEXT}, 'prediction_text': {TEXT}}}, 'references': {TEXT}}}",
        f"{{'references': {TEXT}}}",
    ],
)
def test_a_module_that_takes_other_things_than_texts_is_refused_with_what_it_takes(tmp_path: Path, features: str) -> None:
    with pytest.raises(TaskError, match=r"grader: 'evaluate:.*other'.*the module takes \{'(pred|refer)"):
        load(tmp_path, make_module(tmp_path, "other", features=features))


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"grader: .*needy'.*not installed.*no_such_package_here"):
        load(tmp_path, make_module(tmp_path, "needy", imports="import no_such_package_here"))


def test_a_module_that_raises_where_it_is_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"grader: .*hasty'.*cannot be loaded: ZeroDivisionError"):
        load(tmp_path, make_module(tmp_path, "hasty", imports="1 / 0"))


@pytest.mark.parametrize("name", ["/nowhere/metrics/mine", "a/b/mine", "nowhere.mine", "firewall_ray.nothing", "missing.py"])
def test_a_module_that_is_nowhere_is_named_with_what_can_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        TaskError, match=rf"grader: 'evaluate:{name}': the module cannot be had.*Write its name on the hub, a folder"
    ):
        load(tmp_path, name)


def test_a_name_on_the_hub_is_not_asked_for_where_the_hub_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`own_caches` fails the test for a connection; with the variable none is tried."""
    import datasets
    import evaluate

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
    with pytest.raises(TaskError, match=r"'evaluate:some_metric': the module cannot be had"):
        load(tmp_path, "some_metric")
    assert evaluate.config.HF_EVALUATE_OFFLINE


def test_an_argument_that_the_module_does_not_take_is_told_with_its_own_words(tmp_path: Path) -> None:
    module = make_module(tmp_path, "strict", "        assert not arguments, sorted(arguments)\n        return {'strict': 1.0}\n")
    with pytest.raises(TaskError, match=r"fails on a query's own reference: AssertionError: \['ignore'\].*evaluate\.arguments"):
        load(tmp_path, module, arguments={"ignore": 1})


@pytest.mark.parametrize("answer", [None, "", " ", [], ["a", None], {"x": 1}, True])
def test_a_reference_that_is_no_text_is_named_with_its_row(tmp_path: Path, answer: Any) -> None:
    with pytest.raises(TaskError, match=r"row 1: `answer` must be a text, or a list of texts"):
        load(tmp_path, make_words(tmp_path), answer, key="share")


# The config ----------------------------------------------------------------------------------------------------------


def test_what_is_said_for_evaluate_is_not_passed_over_by_another_grader() -> None:
    with pytest.raises(ValueError, match="`evaluate` is for `grader: evaluate:<module>`, but grader is 'exact'"):
        CustomTaskOptions(source="-", evaluate={"threshold": 0.5})
    for grader in ("evaluate:", "evaluate: x"):
        with pytest.raises(ValueError, match="a module of Hugging Face's evaluate as evaluate:NAME"):
            CustomTaskOptions(source="-", grader=grader)


@pytest.mark.parametrize(
    "module",
    ["code_eval", "evaluate-metric/code_eval", "my/code_eval", "my/code_eval/code_eval.py", "./code_eval/", "my.code_eval"],
)
def test_programs_run_in_the_sandbox_or_on_the_users_own_word(module: str) -> None:
    with pytest.raises(ValueError, match=r"`grader: code` runs them in the sandbox.*isolation: unsafe.*HF_ALLOW_CODE_EVAL=1"):
        CustomTaskOptions(source="-", grader=f"evaluate:{module}")
    assert CustomTaskOptions(source="-", grader=f"evaluate:{module}", sandbox={"isolation": "unsafe"})


def test_a_wrong_key_is_named_where_it_stands(tmp_path: Path) -> None:
    custom = "{capitals: {source: x, grader: 'evaluate:rouge', evaluate: {treshold: 1}}}"
    (tmp_path / "run.yaml").write_text(
        f"{{root: r, models: {{weak: {{path: a}}, strong: {{path: b}}}}, queries: {{tasks: {{custom: {custom}}}}}}}"
    )
    with pytest.raises(ConfigError, match=r"capitals\.evaluate\.treshold: unknown key; did you mean .*evaluate\.threshold\?"):
        load_config(tmp_path / "run.yaml")


# In workers ----------------------------------------------------------------------------------------------------------


def test_a_run_prepares_and_grades_with_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"question": f"{i}?", "answer": f"a b {i}"}) + "\n" for i in range(5)))
    own = {"source": str(tmp_path / "rows.jsonl"), "grader": f"evaluate:{make_words(tmp_path)}"}
    own["evaluate"] = {"key": "share", "threshold": 0.6}
    config = make_config(str(tmp_path / "root"), queries={"tasks": {"custom": {"capitals": own}}})
    store = ArtifactStore(config.root)
    assert run_prepare_queries(config, store)["queries"] == 5
    queries = store.queries().read().slice(0, 1)
    row = sample(queries["query_id"][0].as_py(), ["a b", "a", "b a x"], "", task="capitals")
    custom = config.queries.custom_tasks()
    options = {name: each.model_dump() for name, each in custom.items()}
    (graded,) = grade_batch(pa.Table.from_pylist([row], schema=SAMPLES), queries, "weak", options, known_tasks(custom)).to_pylist()
    # 2 of 3 words, 1 of 3, 2 of 3; the blank one is wrong.
    assert (graded["correct"], graded["greedy_correct"], graded["error"]) == ([True, False, True], False, None)
    # A key that is no more there is everybody's fault, not each row's.
    options["capitals"]["evaluate"] = {**options["capitals"]["evaluate"], "key": "rougeL"}
    with pytest.raises(TaskError, match="has no 'rougeL'"):
        grade_batch(pa.Table.from_pylist([row], schema=SAMPLES), queries, "weak", options, known_tasks(custom))


def test_nan_and_what_the_module_raises_cost_their_row_alone(tmp_path: Path) -> None:
    compute = "        score = {'x': 1.0, 'y': float('nan')}[predictions[0]]\n        return {'moody': score}\n"
    task, options = make_task(make_module(tmp_path, "moody", compute))
    queries = pa.Table.from_pylist([{"query_id": c, "task": "capitals", "reference": '{"answer": "x"}'} for c in "abc"])
    texts = {"a": "x", "b": "bad", "c": "y"}
    samples = [sample(key, [text], "x", task="capitals") for key, text in texts.items()]
    graded = grade_batch(pa.Table.from_pylist(samples, schema=SAMPLES), queries, "weak", {"capitals": options}, {"capitals": task})
    a, b, c = graded["error"].to_pylist()
    assert a is None
    assert "KeyError: 'bad'" in b
    assert "gives NaN" in c


def test_a_reference_that_somebody_else_wrote_and_is_no_text_costs_its_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its reference must be a text.*there is \{'x': 1\}"):
        grade("x", {"x": 1}, make_module(tmp_path, "unread"))


def test_a_process_loads_a_module_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    loaded = []
    original = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: loaded.append(a) or original(*a, **k))
    module = make_module(tmp_path, "loaded_once")
    for _ in range(3):
        assert grade("x", "x", module)
        assert get_grader(f"evaluate:{module}").problem("x") is None
    assert len(loaded) == 1


def test_its_time_is_known_without_loading_it() -> None:
    assert verdict_s("evaluate:/nowhere/metrics/mine") == EVALUATE_VERDICT_S


GRADE_MANY = """
import socket, sys
socket.socket.connect = lambda *a, **k: sys.exit("a connection was tried")
from firewall_ray.tasks.graders import get_grader
assert "evaluate" not in sys.modules and "datasets" not in sys.modules
grader = get_grader(f"evaluate:{sys.argv[1]}")
options = {"evaluate": {"key": "share", "threshold": 0.5}}
number = int(sys.argv[2])
print("".join(str(int(grader.is_right("a " * (i % number == 0) + "z", "a b", options))) for i in range(40)))
"""


def test_several_processes_grade_at_once_without_a_network_and_leave_no_files(tmp_path: Path) -> None:
    """They share HF_HOME, as the workers of a node do, and none of them has the module yet."""
    module = make_words(tmp_path)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, "-c", GRADE_MANY, str(module)]
    processes = [
        subprocess.Popen([*command, str(n)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for n in (2, 3, 5)
    ]
    for n, process in zip((2, 3, 5), processes, strict=True):
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.strip() == "".join(str(int(i % n == 0)) for i in range(40))
    assert not list((tmp_path / "home" / "metrics").rglob("*.arrow*"))
