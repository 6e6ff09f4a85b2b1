import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import make_config, sample
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.config.queries import GRADERS as NAMES
from firewall_ray.config.queries import CustomTaskOptions, SplitsConfig
from firewall_ray.config.run import load_config
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.errors import ConfigError, TaskError
from firewall_ray.schemas import SAMPLES
from firewall_ray.stages.grade import grade_batch
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.stages.sample import sampling_spec
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import known_tasks
from firewall_ray.tasks.custom import CustomTask
from firewall_ray.tasks.graders import GRADERS
from firewall_ray.tasks.judged import NotJudged
from firewall_ray.tasks.numbers import final_number
from firewall_ray.tasks.splits import draw_split

ROWS = [{"question": f"Capital of {i}?", "answer": f"City {i}"} for i in range(20)]


def make_task(**options: Any) -> tuple[CustomTask, dict[str, Any]]:
    checked = CustomTaskOptions.model_validate(options)
    return CustomTask("capitals", checked), checked.model_dump(mode="json")


def load(source: Path, **options: Any) -> list[Any]:
    task, options = make_task(source=str(source), **options)
    return list(task.load(options))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def grade(completion: str, answer: Any, grader: str, **options: Any) -> bool:
    task, options = make_task(source="-", grader=grader, **options)
    return task.grade(completion, {"answer": answer}, options)


# Graders -------------------------------------------------------------------------------------------------------------


def test_the_config_knows_every_grader() -> None:
    assert set(GRADERS) == set(NAMES)


@pytest.mark.parametrize(
    ("grader", "completion", "answer", "right"),
    [
        ("exact", " Paris\n", "Paris", True),
        ("exact", "paris", "Paris", False),
        ("exact", "Paris.", "Paris", False),
        ("exact", "Roma", ["Rome", "Roma"], True),
        ("exact", "18", 18, True),
        ("numeric", "3 x $600 makes $1,800.00.", 1800, True),
        ("numeric", "18.0", "18", True),
        ("numeric", "1.8e1", 18, True),
        ("numeric", ".5", 0.5, True),
        ("numeric", "from 20 down to -5", -5, True),
        ("numeric", "18 or 19", 18, False),  # the last number counts
        ("numeric", "eighteen", 18, False),
        ("numeric", "٣", 3, False),  # only ASCII digits are digits
        ("numeric", "1,000", "$1000", True),
        ("regex", "It is Paris, of course", r"\bParis\b", True),
        ("regex", "It is Paris, of course", r"^Paris$", False),
    ],
)
def test_hand_worked_verdicts(grader: str, completion: str, answer: Any, right: bool) -> None:
    assert grade(completion, answer, grader) is right


@given(st.text() | st.text(alphabet="0123456789.,$-eE \n"), st.sampled_from(["exact", "numeric", "regex"]))
def test_no_completion_makes_a_grader_raise(completion: str, grader: str) -> None:
    assert grade(completion, "18", grader) in (True, False)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=3))
def test_a_number_is_found_after_any_sentence(number: Any) -> None:
    assert final_number(f"First 7, so it is {number:,}") == number


def test_code_runs_with_the_tests_of_the_row() -> None:
    options = {"sandbox": {"isolation": "unsafe"}}  # our own programs, on any machine
    tests = "assert double(4) == 8"
    assert grade("def double(x):\n    return 2 * x\n", tests, "code", **options)
    assert grade("Sure:\n```python\ndef double(x):\n    return x + x\n```\nThere.", tests, "code", **options)
    assert not grade("def double(x):\n    return x\n", tests, "code", **options)
    assert not grade("no code", tests, "code", **options)


def test_a_pattern_that_backtracks_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall_ray.tasks.graders.SECONDS_PER_PATTERN", 0.1)
    with pytest.raises(TimeoutError):
        grade("a" * 5_000 + "!", r"(a|a|b)+(a|aa)+(aa|a)+$(?<=x)|(.*a){25}", "regex")


JUDGE = {"base_url": "http://localhost:8000/v1", "model": "judge"}


def test_questions_without_references_are_for_a_judge_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "own.jsonl", [{"question": "Why?"}])
    (query,) = load(source, answer=None, grader="judge", judge=JUDGE)
    assert json.loads(query.reference) == {"answer": None}
    mixed = write(tmp_path / "mixed.jsonl", [{"question": "Why?", "answer": None}, {"question": "When?", "answer": "1912"}])
    assert [json.loads(q.reference)["answer"] for q in load(mixed, grader="judge", judge=JUDGE)] == [None, "1912"]
    for wrong in ({"answer": None}, {"grader": "judge"}, {"judge": JUDGE}):
        with pytest.raises(ValueError, match="judge"):
            make_task(source="-", **wrong)


def test_the_judge_of_the_docs_is_one_and_a_key_in_the_wrong_field_is_not_repeated(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "your_own_task.md").read_text()
    (block,) = [part for part in text.split("```yaml\n") if "judge:" in part and part.startswith("queries:")]
    rest = "root: runs/mine\nmodels: {weak: {path: a}, strong: {path: b}}\n"
    (tmp_path / "run.yaml").write_text(rest + block.partition("```")[0])
    judge = load_config(tmp_path / "run.yaml").queries.custom_tasks()["support"].judge
    assert judge is not None
    assert (judge.server.api, judge.server.max_concurrency, judge.max_calls) == ("chat", 32, 50_000)
    secret = "sk-proj-ABC0123456789abcdefXYZ"
    for field in ("api_key_env", "base_url"):
        with pytest.raises(ConfigError, match=rf"judge\.{field}") as caught:
            load_config(tmp_path / "run.yaml", [f"queries.tasks.custom.support.judge.{field}={secret}"])
        assert secret not in "".join(traceback.format_exception(caught.value))


def test_a_judges_verdict_is_looked_up_and_its_error_is_the_rows() -> None:
    judged = {"yes": ("right", None), "no": ("wrong", None), "hm": ("no_answer", None), "?": (None, "HTTP 400")}
    task, options = make_task(source="-", grader="judge", judge=JUDGE)
    verdicts = [task.verdict(text, "stop", {"answer": None}, {**options, "judged": judged}) for text in ("yes", "no", "hm")]
    assert verdicts == ["right", "wrong", "no_answer"]
    with pytest.raises(NotJudged, match="HTTP 400"):
        task.grade("?", {"answer": None}, {**options, "judged": judged})
    with pytest.raises(NotJudged, match=r"jobs/grade\.py"):
        task.grade("yes", {"answer": None}, options)


@pytest.fixture
def my_graders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_graders.py").write_text(
        "import numpy as np\n"
        "LIMIT = 3\n"
        "def lenient(completion, reference):\n    return completion.strip().lower() == reference.lower()\n"
        "def numpy_bool(completion, reference):\n    return np.bool_(True)\n"
        "def talkative(completion, reference):\n    return 'no'\n"
        "def broken(completion, reference):\n    raise KeyError('oops')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_graders", raising=False)
    return tmp_path


def test_a_function_of_the_users_grades(my_graders: Path) -> None:
    assert grade("PARIS", "Paris", "my_graders:lenient") is True
    assert grade("Rome", "Paris", "my_graders:lenient") is False
    assert grade("Rome", "Paris", "my_graders:numpy_bool") is True
    with pytest.raises(TypeError, match=r"my_graders:talkative must return True or False, it returned 'no'"):
        grade("Rome", "Paris", "my_graders:talkative")


@pytest.mark.parametrize("name", ["my_graders:missing", "no_such_module:f", "my_graders:LIMIT"])
def test_a_function_that_cannot_be_used_is_named_before_anything_is_read(my_graders: Path, name: str) -> None:
    with pytest.raises(TaskError, match=rf"grader: '{name}'"):
        load(my_graders / "none.jsonl", grader=name)


@pytest.mark.parametrize("grader", ["equals", "Exact", "module:", ":f", "a b:c", "a..b:c", "1a:f", "a:b.c"])
def test_a_grader_that_does_not_exist_is_refused_with_the_ones_that_do(grader: str) -> None:
    with pytest.raises(ValueError, match="exact, numeric, regex, code, judge, or a Python function"):
        CustomTaskOptions(source="-", grader=grader)


# Loading -------------------------------------------------------------------------------------------------------------


def test_a_folders_files_are_its_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS[:3])
    (tmp_path / "test.csv").write_text('question,answer\n"Capital of ""x"",\nor y?",Z\n')
    queries = load(tmp_path)
    assert [(q.split, q.question) for q in queries] == [
        *(("train", row["question"]) for row in ROWS[:3]),
        ("test", 'Capital of "x",\nor y?'),
    ]
    assert json.loads(queries[0].reference) == {"answer": "City 0"}
    assert queries[0].prompt == "Question: Capital of 0?\nAnswer: "
    assert queries[0].task == "capitals"


def test_a_single_file_is_split_by_a_hash_that_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    many = [{"q": f"Capital of {i}?", "a": 1} for i in range(1_000)]
    source = write(tmp_path / "all.jsonl", many)
    queries = load(source, question="q", answer="a", splits={"test": 0.25, "validation": 0.2})
    shares = Counter(q.split for q in queries)
    # 0.25; 0.75 * 0.2 = 0.15; 0.6. Four standard deviations of a share of 1,000 are at most 0.065.
    assert all(
        abs(shares[split] / 1_000 - share) < 0.065 for split, share in (("test", 0.25), ("validation", 0.15), ("train", 0.6))
    )
    fewer = load(write(tmp_path / "some.jsonl", many[::3]), question="q", answer="a", splits={"test": 0.25, "validation": 0.2})
    assert {q.query_id: q.split for q in fewer}.items() <= {q.query_id: q.split for q in queries}.items()


@given(st.text(), st.integers(2, 10), st.integers())
def test_every_question_is_test_in_exactly_one_fold(question: str, folds: int, seed: int) -> None:
    splits = [draw_split(question, SplitsConfig(folds=folds, fold=fold, seed=seed)) for fold in range(folds)]
    assert splits.count("test") == 1


def test_shares_of_nothing_and_of_everything() -> None:
    assert {draw_split(str(i), SplitsConfig(test=1)) for i in range(50)} == {"test"}
    assert {draw_split(str(i), SplitsConfig(test=0, validation=0)) for i in range(50)} == {"train"}
    assert {draw_split(str(i), SplitsConfig(test=0, validation=1)) for i in range(50)} == {"validation"}
    with pytest.raises(ValueError, match="fold is 5, but folds is 5"):
        SplitsConfig(folds=5, fold=5)


def test_jsonl_csv_and_parquet_hold_the_same_queries(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "all.parquet")
    csv = "\ufeffquestion,answer\r\n" + "".join(f"{row['question']},{row['answer']}\r\n" for row in ROWS)  # as Excel writes it
    (tmp_path / "all.csv").write_text(csv, newline="")
    queries = load(write(tmp_path / "all.jsonl", ROWS))
    assert queries == load(tmp_path / "all.parquet") == load(tmp_path / "all.csv")


@pytest.mark.parametrize(
    ("row", "grader", "named"),
    [
        ({"question": "What?"}, "exact", r"row 21.*no field 'answer', only \['question'\].*custom\.capitals\.answer"),
        ({"question": "What?", "answer": None}, "exact", r"row 21: `answer` must be a text, or a list"),
        ({"question": "What?", "answer": []}, "exact", r"row 21: `answer`"),
        ({"question": "What?", "answer": {"x": 1}}, "exact", r"row 21: `answer`"),
        ({"question": 3, "answer": "x"}, "exact", r"row 21.*`question` must be a text, there is 3"),
        ({"question": "What?", "answer": "many"}, "numeric", r"row 1: `answer` must be a number"),
        ({"question": "What?", "answer": "(unclosed"}, "regex", r"row 21: `answer` must be a pattern: .*there is '\(unclosed'"),
        ({"question": "What?", "answer": "def f(:"}, "code", r"row 1: `answer` must be Python"),
        ({"question": ROWS[2]["question"], "answer": "x"}, "exact", r"row 21: the question 'Capital of 2\?' is also in .*row 3"),
        ("[1]", "exact", r"row 21.*must be a JSON object"),
    ],
)
def test_a_malformed_row_is_named_with_its_file(tmp_path: Path, row: Any, grader: str, named: str) -> None:
    with pytest.raises(TaskError, match=rf"all\.jsonl, {named}"):
        load(write(tmp_path / "all.jsonl", [*ROWS, row]), grader=grader)


def test_a_csv_row_of_another_width_is_named(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("question,answer\nWhat?,x\nWhere, exactly?,y,z\n")
    with pytest.raises(TaskError, match=r"all\.csv, row 2.*'Where'"):
        load(tmp_path / "all.csv")


def test_a_source_that_is_not_there_or_doubtful_names_its_option(tmp_path: Path) -> None:
    option = r"queries\.tasks\.custom\.capitals\.source"
    with pytest.raises(TaskError, match=rf"{option}: there is no file or folder"):
        load(tmp_path / "none")
    with pytest.raises(TaskError, match=rf"{option}.*has none of .*'train\.jsonl'"):
        load(tmp_path)
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "capitals_train.jsonl", ROWS)
    with pytest.raises(TaskError, match=rf"{option}.*which of them holds train"):
        load(tmp_path)
    with pytest.raises(TaskError, match=r"must end in one of \.jsonl"):
        load(write(tmp_path / "all.txt", ROWS))


# In a run ------------------------------------------------------------------------------------------------------------


def own_config(tmp_path: Path, **options: Any) -> Any:
    task = {"source": str(write(tmp_path / "all.jsonl", ROWS)), "stop": ["\n"], "max_tokens": 7, **options}
    return make_config(str(tmp_path / "root"), queries={"tasks": {"custom": {"capitals": task}}})


def test_a_run_prepares_samples_and_grades_it_like_any_other(tmp_path: Path) -> None:
    config = own_config(tmp_path)
    store = ArtifactStore(config.root)
    assert run_prepare_queries(config, store)["queries"] == 20
    spec = sampling_spec(config, {"capitals"}, PromptFormat())
    assert (spec.stop, spec.max_tokens) == ({"capitals": ("\n",)}, {"capitals": 7})
    queries = store.queries().read().slice(0, 1)
    query = queries.to_pylist()[0]
    row = sample(query["query_id"], [json.loads(query["reference"])["answer"], "x"], "y", task="capitals")
    custom = config.queries.custom_tasks()
    options = {name: own.model_dump() for name, own in custom.items()}
    samples = pa.Table.from_pylist([row], schema=SAMPLES)
    (graded,) = grade_batch(samples, queries, "weak", options, known_tasks(custom)).to_pylist()
    assert (graded["correct"], graded["greedy_correct"], graded["error"]) == ([True, False], False, None)


def test_a_grader_that_raises_costs_its_row_and_says_why(tmp_path: Path, my_graders: Path) -> None:
    config = own_config(tmp_path, grader="my_graders:broken")
    custom = config.queries.custom_tasks()
    query = {"query_id": "a", "task": "capitals", "reference": '{"answer": "x"}'}
    samples = pa.Table.from_pylist([sample("a", ["x"], "x", task="capitals")], schema=SAMPLES)
    options = {name: own.model_dump() for name, own in custom.items()}
    (row,) = grade_batch(samples, pa.Table.from_pylist([query]), "weak", options, known_tasks(custom)).to_pylist()
    assert "the grader of capitals failed: KeyError: 'oops'" in row["error"]


def test_a_wrong_key_in_a_task_of_ones_own_names_the_right_one(tmp_path: Path) -> None:
    text = (
        "{root: r, models: {weak: {path: a}, strong: {path: b}}, queries: {tasks: {custom: {capitals: {source: x, grade: exact}}}}}"
    )
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"queries\.tasks\.custom\.capitals\.grade: unknown key; did you mean .*capitals\.grader\?"
    ):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text(text.replace("capitals", "gsm8k").replace("grade:", "grader:"))
    with pytest.raises(ConfigError, match="gsm8k is a task of this package"):
        load_config(tmp_path / "run.yaml")
