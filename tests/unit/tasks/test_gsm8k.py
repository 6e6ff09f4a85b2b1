import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.errors import TaskError
from firewall_ray.tasks import get_task
from firewall_ray.tasks.gsm8k import extract, normalise

RULES = ("official", "strict", "flexible")
# What a language model could write around a number, and what it should not.
TEXTS = (
    st.text()
    | st.text(alphabet="#0123456789.,$- \n٣½²Question")
    | st.lists(st.sampled_from(["#### ", "1", ",", ".", "-", "$"])).map("".join)
)
OPTIONS = {"num_validation": 1, "num_train": None, "num_test": None, "seed": 0}
ROWS = [{"question": f"How many are {i}?", "answer": f"Count.\n#### {i},000"} for i in range(6)]


def grade(completion: str, answer: str, rule: str) -> bool:
    return get_task("gsm8k").grade(completion, {"answer": answer}, {"rule": rule})


def write_folder(folder: Path, **splits: list[Any]) -> Path:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder


def load(source: Path | str, **options: Any) -> list[Any]:
    return list(get_task("gsm8k").load({**OPTIONS, "source": str(source), **options}))


# Grading -------------------------------------------------------------------------------------------------------------


def test_all_golden_cases_agree_by_all_three_rules(shared_data: Path) -> None:
    cases = json.loads((shared_data / "gsm8k_extraction_cases.json").read_text())["cases"]
    assert len(cases) >= 18
    names = {"official": "official", "strict": "lm_eval_strict", "flexible": "lm_eval_flexible"}
    for case in cases:
        for rule, name in names.items():
            assert extract(case["completion"], rule) == case[f"{name}_extracted"], (case["note"], rule)
            assert grade(case["completion"], case["gold"], rule) == case[f"{name}_correct"], (case["note"], rule)


@pytest.mark.parametrize(
    ("completion", "answer", "official", "strict", "flexible"),
    [
        ("#### 18", "18", True, True, True),
        ("The answer is 18.", "18", False, False, True),  # no marker; flexible reads "18." and drops the full stop
        ("#### 18.", "18", False, True, True),  # official compares "18." as it stands
        ("#### 18. So 3 remain", "18", False, True, False),  # flexible reads the last number, 3
        ("####  18", "18", False, False, True),  # two spaces
        ("#### +18", "18", False, False, True),
        ("#### 7\n#### 18", "7", True, True, False),  # the first marker counts, the last number counts
        ("#### 18\nQuestion: 2 + 2?", "18", True, True, False),
        ("#### 1,234", "1234", True, True, True),
        ("#### -5", "-5", True, True, True),
        ("it is 3-5", "-5", False, False, True),  # a minus binds to what follows it
        ("#### ٣", "3", False, False, False),  # only ASCII digits are digits
        ("#### ", "18", False, False, False),
        ("[invalid]", "18", False, False, False),
        ("costs $57.00", "57", False, False, False),  # "57.00" is another string than "57"
        ("I got 2 dollars, or $18 each", "18", False, False, True),
    ],
)
def test_hand_worked_verdicts(completion: str, answer: str, official: bool, strict: bool, flexible: bool) -> None:
    assert [grade(completion, answer, rule) for rule in RULES] == [official, strict, flexible]


@given(TEXTS, st.sampled_from(RULES))
def test_no_completion_makes_the_grader_raise(completion: str, rule: str) -> None:
    assert grade(completion, "18", rule) in (True, False)
    assert isinstance(extract(completion, rule), str)


@given(st.text(), st.integers(-10_000, 10_000_000))
def test_a_marked_answer_is_found_by_the_official_rule_after_any_working(working: str, number: int) -> None:
    if "#### " not in working:
        assert grade(f"{working}\n#### {number:,}", str(number), "official")


@given(TEXTS)
def test_whatever_the_official_rule_accepts_the_strict_rule_accepts(completion: str) -> None:
    answer = extract(completion, "official")
    if answer != "[invalid]":
        assert grade(completion, answer, "official")
        assert grade(completion, answer, "strict")


@given(st.sampled_from(["1,234", "$5", "-7.", "0.5", "12"]))
def test_normalising_twice_is_normalising_once(answer: str) -> None:
    assert normalise(normalise(answer)) == normalise(answer)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("text", ["1" * 500_000, "#### " * 100_000, "-" * 500_000, "1,.$" * 200_000, "\0" * 1000, "\ud800"])
def test_huge_and_broken_texts_are_graded_in_linear_time(text: str, rule: str) -> None:
    assert grade(text, "18", rule) is False  # a quadratic pattern would hit the test's timeout


# Loading -------------------------------------------------------------------------------------------------------------


def test_splits_are_carved_from_a_seeded_shuffle_and_test_keeps_its_order(tmp_path: Path) -> None:
    tests = [{"question": f"Test {i}?", "answer": f"#### {i}"} for i in range(3)]
    source = write_folder(tmp_path, train=ROWS, test=tests)
    queries = load(source, num_validation=2)
    by_split = {split: [q.question for q in queries if q.split == split] for split in ("train", "validation", "test")}
    assert [len(by_split[split]) for split in by_split] == [4, 2, 3]
    assert sorted(by_split["train"] + by_split["validation"]) == [row["question"] for row in ROWS]
    assert by_split["test"] == ["Test 0?", "Test 1?", "Test 2?"]
    assert load(source, num_validation=2) == queries
    assert load(source, num_validation=2, seed=1) != queries
    # A cap on train must not move validation: the two would overlap between runs otherwise.
    capped = load(source, num_validation=2, num_train=1, num_test=0)
    assert [q.question for q in capped] == [by_split["train"][0], *by_split["validation"]]


def test_a_cap_on_test_draws_by_the_seed(tmp_path: Path) -> None:
    tests = [{"question": f"Test {i}?", "answer": f"#### {i}"} for i in range(20)]
    source = write_folder(tmp_path, train=ROWS, test=tests)

    def drawn(**options: int) -> list[str]:
        return [query.question for query in load(source, **options) if query.split == "test"]

    assert len(set(drawn(num_test=5))) == 5
    assert drawn(num_test=5) not in ([row["question"] for row in tests[:5]], drawn(num_test=5, seed=1))
    assert drawn(num_test=20) == drawn() == [row["question"] for row in tests]


def test_the_reference_is_the_number_after_the_marker_without_commas_and_the_whole_solution(tmp_path: Path) -> None:
    query = load(write_folder(tmp_path, train=ROWS[:1], test=[]), num_validation=0)[0]
    assert json.loads(query.reference) == {"answer": "0000", "solution": "Count.\n#### 0,000"}
    assert query.prompt == "Question: How many are 0?\nAnswer: "


def test_jsonl_gzip_and_parquet_hold_the_same_queries(tmp_path: Path) -> None:
    plain, zipped, parquet = (tmp_path / name for name in ("plain", "zipped", "parquet"))
    for folder in (plain, zipped, parquet):
        folder.mkdir()
    write_folder(plain, train=ROWS, test=ROWS[:0])
    for split, rows in {"train": ROWS, "test": []}.items():
        with gzip.open(zipped / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        schema = pa.schema({"question": pa.string(), "answer": pa.string()})
        pq.write_table(pa.Table.from_pylist(rows, schema), parquet / f"{split}.parquet")
    assert load(plain) == load(zipped) == load(parquet)


def test_the_real_data_set_loads_with_its_official_answers(shared_data: Path) -> None:
    gold = {}
    for split in ("train", "test"):
        with gzip.open(shared_data / f"gsm8k_{split}.jsonl.gz", "rt") as lines:
            gold |= {row["question"]: row["gold"] for row in map(json.loads, lines)}
    queries = load(shared_data, num_validation=500)
    sizes = [sum(q.split == split for q in queries) for split in ("train", "validation", "test")]
    assert sizes == [6_973, 500, 1_319]  # 7,473 - 500
    assert {q.question: json.loads(q.reference)["answer"] for q in queries} == gold
    assert len({q.query_id for q in queries}) == 8_792


def test_the_data_sets_own_solutions_are_right_by_every_rule(shared_data: Path) -> None:
    with gzip.open(shared_data / "gsm8k_test.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            assert [grade(row["answer"], row["gold"], rule) for rule in RULES] == [True, True, True], row["id"]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([*ROWS, {"question": "What?"}], r"train\.jsonl, row 7.*`answer`.*only \['question'\]"),
        ([ROWS[0], {"question": 3, "answer": "#### 3"}], r"row 2.*`question`.*3"),
        ([{"question": " ", "answer": "#### 3"}], r"row 1.*`question`"),
        ([{"question": "What?", "answer": "three"}], r"row 1.*'#### <number>'.*three"),
        (["{not json"], r"row 1.*must be a JSON object.*not json"),
        (["[1, 2]"], r"row 1.*must be a JSON object"),
        ([ROWS[0], "-", ROWS[1]], r"row 2.*must be a JSON object"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, rows: list[Any], named: str) -> None:
    with pytest.raises(TaskError, match=named):
        load(write_folder(tmp_path, train=rows, test=[]), num_validation=0)


def test_a_missing_or_doubtful_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"queries\.tasks\.gsm8k\.source.*train\.jsonl"):
        load(tmp_path)
    write_folder(tmp_path, train=ROWS, test=[])
    (tmp_path / "train.parquet").touch()
    with pytest.raises(TaskError, match="exactly one"):
        load(tmp_path)


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, test=[])
    data = gzip.compress(json.dumps(ROWS[0]).encode() * 100)
    (tmp_path / "train.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(TaskError, match=r"train\.jsonl\.gz cannot be read"):
        load(tmp_path)
    (tmp_path / "train.jsonl.gz").unlink()
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(TaskError, match=r"train\.parquet cannot be read"):
        load(tmp_path)
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.jsonl").write_bytes(b'{"question": "\xff\xfe"}\n')
    with pytest.raises(TaskError, match=r"train\.jsonl cannot be read"):
        load(tmp_path)


def test_more_validation_than_there_is_train_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"queries\.tasks\.gsm8k\.num_validation is 7.*6 rows"):
        load(write_folder(tmp_path, train=ROWS, test=[]), num_validation=7)


def test_an_id_that_cannot_be_downloaded_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(TaskError, match=r"queries\.tasks\.gsm8k\.source: 'openai/gsm8k' is no folder.*no network"):
        load("openai/gsm8k")
