import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.errors import TaskError
from firewall_ray.tasks import get_task
from firewall_ray.tasks.triviaqa import exact_match, f1, normalise

OPTIONS = {"num_validation": 1, "num_train": None, "num_test": None, "seed": 0}
TEXTS = st.text() | st.text(alphabet="aAnthe_ -'’`´–é1,.\n\t\u2003")


def hub_row(question: str, *aliases: str) -> dict[str, Any]:
    """As `datasets` has it, less the fields that nobody reads."""
    answer = {"aliases": [alias.title() for alias in aliases], "normalized_aliases": list(aliases), "value": aliases[0]}
    return {"question_id": f"tc_{question}", "question": question, "answer": answer}


ROWS = [hub_row(f"Who is {i}?", f"person {i}", f"mr {i}") for i in range(6)]


def write_folder(folder: Path, **splits: list[Any]) -> Path:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def load(source: Path | str, **options: Any) -> list[Any]:
    return list(get_task("triviaqa").load({**OPTIONS, "source": str(source), **options}))


def grade(completion: str, aliases: list[str], answer: str = "whole") -> bool:
    return get_task("triviaqa").grade(completion, {"aliases": aliases}, {"answer": answer})


# Grading -------------------------------------------------------------------------------------------------------------


def test_all_golden_cases_agree(shared_data: Path) -> None:
    cases = json.loads((shared_data / "triviaqa_eval_cases.json").read_text())["cases"]
    assert len(cases) >= 21
    for case in cases:
        assert normalise(case["prediction"]) == case["normalized_prediction"], case["note"]
        assert grade(case["prediction"], case["aliases"]) == case["em"], case["note"]
        assert f1(case["prediction"], case["aliases"]) == pytest.approx(case["f1"], abs=1e-12), case["note"]


@pytest.mark.parametrize(
    ("completion", "aliases", "whole", "first_line"),
    [
        ("Paris", ["paris"], True, True),
        (" Paris.\n", ["paris"], True, True),
        ("\n\nParis\nQuestion: And Rome?", ["paris"], False, True),
        ("New\nYork", ["new york"], True, False),  # a line's end is white space to the official program
        ("It is Paris", ["paris"], False, False),
        ("", ["paris"], False, False),
        ("The", ["a"], True, True),  # both are nothing once the articles are gone
        ("Tom & Jerry", ["tom jerry"], True, True),
        ("Tom and Jerry", ["tom jerry"], False, False),
        ("théâtre", ["theatre"], False, False),  # accents count
        ("ﬁlm", ["film"], False, False),  # no compatibility forms either
    ],
)
def test_hand_worked_verdicts(completion: str, aliases: list[str], whole: bool, first_line: bool) -> None:
    assert grade(completion, aliases) is whole
    assert grade(completion, aliases, "first_line") is first_line


def test_f1_is_that_of_the_best_alias() -> None:
    # "red blue": against "red green blue black" precision 2/2, recall 2/4 -> 2/3; against "yellow" 0.
    assert f1("red blue", ["yellow", "red green blue black"]) == pytest.approx(2 / 3)
    assert f1("a", ["the"]) == 0.0
    assert exact_match("a", ["the"])


@given(TEXTS)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_no_completion_makes_the_grader_raise_and_f1_agrees_with_it(completion: str, aliases: list[str]) -> None:
    matches = grade(completion, aliases)
    score = f1(completion, aliases)
    assert 0 <= score <= 1
    if matches and normalise(completion):
        assert score == 1
    assert grade(aliases[0], aliases)
    assert grade(completion, aliases, "first_line") in (True, False)


@pytest.mark.parametrize("text", ["the " * 200_000, "_" * 500_000, "a.b`" * 200_000, "\ud800", "\0" * 1000])
def test_huge_and_broken_texts_are_graded(text: str) -> None:
    assert grade(text, ["paris"]) is False


# Loading -------------------------------------------------------------------------------------------------------------


def test_validation_is_carved_from_train_and_test_is_the_data_sets_validation(tmp_path: Path) -> None:
    tests = [hub_row(f"Where is {i}?", f"place {i}") for i in range(3)]
    source = write_folder(tmp_path, train=ROWS, validation=tests)
    queries = load(source, num_validation=2)
    by_split = {split: [q.question for q in queries if q.split == split] for split in ("train", "validation", "test")}
    assert [len(by_split[split]) for split in by_split] == [4, 2, 3]
    assert sorted(by_split["train"] + by_split["validation"]) == [row["question"] for row in ROWS]
    assert by_split["test"] == ["Where is 0?", "Where is 1?", "Where is 2?"]
    assert load(source, num_validation=2) == queries != load(source, num_validation=2, seed=1)
    capped = load(source, num_validation=2, num_train=1, num_test=0)
    assert [q.question for q in capped] == [by_split["train"][0], *by_split["validation"]]


def test_a_cap_on_test_draws_by_the_seed_and_does_not_take_the_first(tmp_path: Path) -> None:
    """The data set lists questions of one source after those of another."""
    tests = [hub_row(f"Where is {i}?", f"place {i}") for i in range(20)]
    source = write_folder(tmp_path, train=ROWS, validation=tests)

    def drawn(**options: int) -> list[str]:
        return [query.question for query in load(source, **options) if query.split == "test"]

    assert len(set(drawn(num_test=5))) == 5
    assert drawn(num_test=5) not in ([row["question"] for row in tests[:5]], drawn(num_test=5, seed=1))
    assert drawn(num_test=5) == drawn(num_test=7)[:5]


def test_the_reference_is_the_normalized_aliases_and_the_names_as_people_write_them(tmp_path: Path) -> None:
    query = load(write_folder(tmp_path, train=[], validation=ROWS[:1]), num_validation=0)[0]
    # hub_row capitalises its `aliases`, and its `value` is the first normalized one: the main answer comes first, each name once.
    assert json.loads(query.reference) == {"aliases": ["person 0", "mr 0"], "names": ["person 0", "Person 0", "Mr 0"]}
    assert query.prompt == "Question: Who is 0?\nAnswer: "


def test_plain_rows_and_the_data_sets_own_are_the_same_queries(tmp_path: Path) -> None:
    plain = [{"question": row["question"], "aliases": row["answer"]["normalized_aliases"]} for row in ROWS]
    folders = [tmp_path / name for name in ("own", "plain", "parquet")]
    for folder in folders:
        folder.mkdir()
    write_folder(folders[0], train=ROWS, validation=[])
    write_folder(folders[1], train=plain, test=[])  # a folder may say test
    pq.write_table(pa.Table.from_pylist(ROWS), folders[2] / "train.parquet")
    write_folder(folders[2], validation=[])
    own, plain_ones, parquet = (load(folder) for folder in folders)
    assert own == parquet
    # What grades is the same; plain rows have no names beside their aliases.
    graded = [[(q.query_id, q.split, json.loads(q.reference)["aliases"]) for q in queries] for queries in (own, plain_ones)]
    assert graded[0] == graded[1]
    assert all(len({*map(tuple, json.loads(q.reference).values())}) == 1 for q in plain_ones)


def test_a_question_is_in_one_split_and_comes_once_and_the_log_counts_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = [*ROWS, ROWS[0], hub_row("  WHO is 1? ", "x"), hub_row("Where is 0?", "x")]  # a repetition, a variant, a leak
    tests = [hub_row("Where is 0?", "place 0"), hub_row("Where is 0?", "place 0")]
    with caplog.at_level(logging.INFO, "firewall_ray"):
        queries = load(write_folder(tmp_path, train=train, validation=tests))
    assert sorted(q.question for q in queries) == ["Where is 0?", *(row["question"] for row in ROWS)]
    assert len(queries) == len({q.prompt.casefold() for q in queries}) == 7
    assert [q.split for q in queries if q.question == "Where is 0?"] == ["test"]
    assert "3 questions of train" in caplog.text
    assert "1 of test" in caplog.text


def test_a_single_file_is_test(tmp_path: Path, shared_data: Path) -> None:
    queries = load(shared_data / "triviaqa_evouna.jsonl.gz", num_validation=500)
    with gzip.open(shared_data / "triviaqa_evouna.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 2_000
    assert len(queries) == len({q.query_id for q in queries}) == 1_999  # one question is asked twice
    assert {q.split for q in queries} == {"test"}
    by_question = {q.question: json.loads(q.reference) for q in queries}
    assert all(grade(alias, by_question[row["question"]]["aliases"]) for row in rows[:200] for alias in row["aliases"])


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"question": "What?", "answer": {"aliases": [], "normalized_aliases": []}}, r"validation\.jsonl, row 7.*no `aliases`"),
        ({"question": "What?"}, r"row 7.*no `aliases`"),
        ({"question": "What?", "answer": "Paris"}, r"row 7.*`answer` must be an object.*Paris"),
        ({"question": "What?", "aliases": "Paris"}, r"row 7.*`aliases` must be a list of texts.*Paris"),
        ({"question": "What?", "aliases": ["Paris", 3]}, r"row 7.*`aliases` must be a list of texts"),
        ({"question": " ", "aliases": ["Paris"]}, r"row 7.*`question`"),
        ({"aliases": ["Paris"]}, r"row 7.*`question`.*only \['aliases'\]"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: Any, named: str) -> None:
    with pytest.raises(TaskError, match=named):
        load(write_folder(tmp_path, train=[], validation=[*ROWS, row]), num_validation=0)


def test_more_validation_than_there_is_train_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"queries\.tasks\.triviaqa\.num_validation is 6.*5 questions"):
        load(write_folder(tmp_path, train=ROWS, validation=ROWS[:1]), num_validation=6)


def test_a_missing_or_doubtful_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"queries\.tasks\.triviaqa\.source.*validation\.jsonl.*test\.jsonl"):
        load(tmp_path)
    with pytest.raises(TaskError, match="exactly one"):
        load(write_folder(tmp_path, train=ROWS, validation=ROWS, test=ROWS))


def test_the_hub_is_asked_for_its_closed_book_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(source: str, subset: str, split: str) -> list[Any]:
        asked.append((source, subset, split))
        return ROWS if split == "train" else [hub_row("Where?", "there")]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("mandarjoshi/trivia_qa")) == 7
    assert sorted(asked) == [("mandarjoshi/trivia_qa", "rc.nocontext", split) for split in ("train", "validation")]
