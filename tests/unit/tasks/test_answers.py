"""Numbers, names and thoughts in answers as models write them; no answer told from a wrong one."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.config.grading import HumanevalGradingConfig, TriviaqaGradingConfig
from firewall_ray.config.queries import CustomTaskOptions
from firewall_ray.tasks import get_task
from firewall_ray.tasks.custom import CustomTask
from firewall_ray.tasks.numbers import final_number
from firewall_ray.tasks.thinking import answer_of


def own(grader: str) -> tuple[CustomTask, dict[str, Any]]:
    options = CustomTaskOptions(source="-", grader=grader, sandbox={"isolation": "unsafe"})  # type: ignore[arg-type]
    return CustomTask("mine", options), options.model_dump(mode="json")


def grade(completion: str, answer: Any, grader: str) -> bool:
    task, options = own(grader)
    return task.grade(completion, {"answer": answer}, options)


def verdict(completion: str, answer: Any, grader: str) -> str:
    task, options = own(grader)
    return task.verdict(completion, "stop", {"answer": answer}, options)


def test_all_published_cases_are_right(shared_data: Path) -> None:
    path = shared_data.parent / "cases" / "graders.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    published = json.loads(path.read_text())
    for case in published["cases"]:
        if case["task"] == "humaneval":
            row = published["references"][case["reference"]]
            found = get_task("humaneval").grade(
                case["completion"], row, {**HumanevalGradingConfig().model_dump(), "isolation": "unsafe"}
            )
        else:
            found = grade(case["completion"], case["reference"]["answer"], case["task"])
        assert found is case["right"], case


# Numbers -------------------------------------------------------------------------------------------------------------

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
NUMBERS = [
    # Signs
    ("The answer is −5.", -5), ("－5", -5), ("–5", -5), ("= −5", -5), ("x = − 5", -5), ("It is - 5", -5), ("-$5", -5), ("$-5", -5),
    ("−$1,800", -1800), ("**-5**", -5), ("negative 5", -5), ("The answer is minus 5", -5), ("+18", 18), ("-.5", -HALF),
    ("10 minus 5", 5), ("3–5", 5), ("between 3-5", 5), ("10 − 5 = 5", 5), ("x-5", 5), ("T-18", 18), ("The answer is 18-20", 20),
    # Thousands
    ("1{,}800", 1800), ("1\u202f800", 1800), ("1\u00a0800", 1800), ("1\u2009800", 1800),
    ("1 800", 1800), ("$1 800.", 1800), ("in all 1 800 000", 1_800_000), ("in 18 300 people", 300), ("1'800", 1800),
    ("1’800.50", Fraction(3601, 2)),
    ("1_800", 1800), ("1,00,000", 100_000), (r"1\,800", 1800), (r"1\ 800", 1800), ("1,234,567.50", Fraction(2469135, 2)),
    ("1.234.567", 1_234_567),
    # Decimals by comma
    ("3,5", Fraction(7, 2)), ("0,125", Fraction(1, 8)), ("1.234,5", Fraction(2469, 2)), ("12,50 €", Fraction(25, 2)),
    ("1.234", Fraction(1234, 1000)),
    ("(3,5)", 5), ("1,2,3", 3), ("1, 2", 2), ("18, 19", 19),
    # Units
    ("18 dollars", 18), ("5km", 5), ("50%", 50), ("50 %", 50), ("€18", 18), ("18€", 18), ("$ 18", 18), ("USD18", 18),
    ("18th", 18), ("90^\\circ", 90),
    ("18 m^2", 18), ("18 m²", 18), ("18 m2", 18), ("18 cm^{2}", 18), ("5 m s^{-1}", 5), ("x² = 4, so x = 2", 2), ("18.", 18),
    ("18, of course", 18),
    # LaTeX
    (r"\boxed{18}", 18), (r"$\boxed{18}$, not 19", 18), (r"\boxed{\text{18 km}}", 18), (r"\boxed{1{,}800}", 1800),
    (r"\boxed{-5}", -5),
    (r"\boxed{x = 18}", 18), (r"\boxed 7", 7), (r"\boxed{18", 18), (r"\boxed{\$18}", 18), (r"\fbox{18} is 3 more than 15", 18),
    (r"\boxed{17} was wrong: \boxed{18}", 18), ("$18$", 18), (r"\$18", 18), (r"\(18\)", 18), (r"\[ x = 18 \]", 18),
    (r"\mathbf{18}", 18),
    (r"18\text{ dollars}", 18), (r"18\,\mathrm{m}^2", 18), (r"\frac{1}{2}", HALF), (r"\dfrac{1}{3}", THIRD), (r"\frac12", HALF),
    (r"-\frac{1}{2}", -HALF), (r"\frac{-1}{2}", -HALF), (r"1\frac{1}{2}", 3 * HALF), (r"\boxed{\dfrac{1}{3}}", THIRD),
    (r"50\%", 50),
    # Fractions and powers
    ("1/2", HALF), ("1 1/2 cups", 3 * HALF), ("1½", 3 * HALF), ("½", HALF), ("⅓", THIRD), ("1⁄2", HALF), ("-1/2", -HALF),
    ("10/5 = 2", 2), ("1/0", 0),
    ("1.8e3", 1800), ("1.8E+3", 1800), ("1.8 × 10^3", 1800), (r"1.8 \times 10^{3}", 1800), ("1.8x10^3", 1800), ("1.8·10³", 1800),
    ("5 * 10**-1", HALF), ("10^3", 1000), ("10^{-1}", Fraction(1, 10)), ("-1.5e-1", Fraction(-3, 20)),
    # Other digits
    ("１８", 18), ("１，８００．５", Fraction(3601, 2)), ("٣", None), ("²", None),
    ("eighteen", None), ("", None), ("-", None), ("$", None),
    # A mark
    ("The answer is 18, which is 3 more than 15.", 18), ("The answer is 20 - 2 = 18.", 18), ("The answer is 3 * 6. So 18", 18),
    ("The final answer is $18$. Check: 9 * 2", 18), ("**Answer:** $18 (3 more than 15)", 18), ("Answer\n18", 18),
    ("Final answer: **18**\n\n3 left", 18),
    ("Answer: x = 18, y = 2", 2), ("The answer to the question is 18. 3 are left.", 18),
    ("The answer should be 18; 3 are left", 18),
    ("The answer is not 17 but 18", 18), ("The answer is clear: there are 3 of 6, so 18", 3),
    ("#### 18\nthat is 3 more than 15", 18),
    ("#### Step 2: add\nso 18", 18), ("#### 17\n#### 18", 18), ("18 or 19", 19), ("No mark, 18, which is 3 more than 15.", 15),
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_a_number_is_read_as_it_is_meant(text: str, number: Any) -> None:
    found = final_number(text)
    assert (None if found is None else Fraction(found)) == number
    if number is not None:
        assert grade(text, str(number), "numeric")
        assert not grade(text, 77, "numeric")
    assert verdict(text, 77, "numeric") == ("no_answer" if number is None else "wrong")


@given(st.text() | st.text(alphabet="0123456789.,-−–/$€\\{}^*xeE ½'answer is#boxedfrac\n"))
def test_every_text_has_a_number_or_none(text: str) -> None:
    found = final_number(text)
    assert found is None or Fraction(found) == Fraction(found)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 500_000,
        "#### " * 100_000,
        "-" * 500_000,
        "1,.$" * 100_000,
        "answer is " * 50_000,
        "\\boxed{" * 50_000,
        "{" * 500_000,
        " " * 500_000,
        "\\frac{" * 50_000,
        "1/" * 100_000,
        "1 " * 100_000,
        "1,111" * 50_000,
        "1.111" * 50_000,
        "⁰" * 500_000,
        "\0" * 1000,
        "\ud800",
    ],
)
def test_huge_and_broken_texts_are_read_in_time(text: str) -> None:
    final_number(text)  # what is quadratic would hit the test's timeout


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("The answer is 18, which is 3 more than 15.", "18"),
        (r"So \boxed{\$1{,}800} a year.", "1800"),
        ("It costs $57.00.", "57"),
        ("That is 18 km^2", "18"),
    ],
)
def test_gsm8ks_final_rule_reads_what_chat_models_write(completion: str, answer: str) -> None:
    task = get_task("gsm8k")
    assert task.grade(completion, {"answer": answer}, {"rule": "final"})
    assert not task.grade(completion, {"answer": answer}, {"rule": "official"})
    assert not task.grade(completion, {"answer": "77"}, {"rule": "final"})


def test_gsm8k_has_an_answer_where_its_rule_reads_one() -> None:
    def answers(completion: str) -> list[bool]:
        return [
            get_task("gsm8k").has_answer(completion, {"answer": "1"}, {"rule": rule})
            for rule in ("official", "strict", "flexible", "final")
        ]

    assert answers("#### 18") == [True, True, True, True]
    assert answers("It is 18") == [False, False, True, True]
    assert answers("I don't know") == answers("") == answers("<think>#### 18") == [False] * 4


# Texts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("true", True, True),
        ("false", False, True),
        ("true", False, False),
        ("True", True, True),
        ("null", None, True),
        ("0.5", 0.5, True),
        ("18", 18, True),
        ("1", True, False),
        ("Cafe\u0301", "Café", True),
        ("Café", "Cafe\u0301", True),
        ("Cafe", "Café", False),
        ("x2", "x²", False),
        ("\u00a0Paris\u2003\n", "Paris", True),
        ("\ufeffParis\u200b", "Paris", True),
        ("Paris", " Paris ", True),
        ("a  b", "a b", False),
        ("Å", ["B", "A\u030a"], True),
        ("\ud800", "\ud800", True),
    ],
)
def test_exact_is_equality_of_texts_however_they_are_spelled(completion: str, answer: Any, right: bool) -> None:
    assert grade(completion, answer, "exact") is right


@pytest.mark.parametrize(
    ("completion", "aliases", "right"),
    [
        ("It was J. K. Rowling, in 1997.", ["J.K. Rowling"], True),
        ("It lies in St. Louis.", ["st louis"], True),
        ("The U.S. won.", ["us", "u s"], True),
        ("In 1997 it was Paris. Not Rome.", ["paris"], True),
        ("A parish.", ["Paris"], False),
        ("It was Mr. Bean.", ["Mr. Bean"], True),
        ("Airplane! It is a film.", ["airplane"], True),
        ("\n\n?\nIt was Paris", ["paris"], True),
        ("It was Rome\nQuestion: And Paris?", ["paris"], False),
        ("The", ["a"], True),
        ("It was Rome", ["the", "a"], False),
        ("", ["paris"], False),
        ("", ["a"], True),
        ("New\nYork", ["new york"], True),
        ("new york", ["york new"], False),
        ("O'Neill's boat", ["o neill"], True),
        ("The Beatles", ["Beatles"], True),
    ],
)
def test_contains_finds_an_alias_as_whole_words_of_the_first_line(completion: str, aliases: list[str], right: bool) -> None:
    options = TriviaqaGradingConfig(match="contains").model_dump()
    assert get_task("triviaqa").grade(completion, {"aliases": aliases}, options) is right


@given(st.text(), st.lists(st.text(), min_size=1))
def test_what_is_an_alias_contains_it(completion: str, aliases: list[str]) -> None:
    task, reference = get_task("triviaqa"), {"aliases": aliases}
    exact, contains = (
        task.grade(completion, reference, TriviaqaGradingConfig(match=match).model_dump()) for match in ("exact", "contains")
    )
    assert contains or not exact


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "?",
        "...",
        "I don't know.",
        "I'm sorry, but I can't help with that.",
        "Sorry, I have no idea",
        "As an AI model, I cannot say",
        "Unknown",
        "I do not have that information.",
        "<think>Paris",
    ],
)
def test_nothing_and_refusals_are_no_answers(text: str) -> None:
    options = TriviaqaGradingConfig().model_dump()
    assert get_task("triviaqa").verdict(text, "stop", {"aliases": ["rome"]}, options) == "no_answer"
    assert get_task("triviaqa").verdict(text, "length", {"aliases": ["rome"]}, options) == "truncated"
    assert verdict(text, "Rome", "exact") == ("wrong" if text in ("?", "...") else "no_answer")


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "I Don't Want to Miss a Thing",
        "The Unknown Soldier",
        "I'm a Believer",
        "Sorry Not Sorry",
        "I Can't Get No Satisfaction",
    ],
)
def test_names_that_sound_like_refusals_are_answers(text: str) -> None:
    assert verdict(text, "Rome", "exact") == "wrong"
    assert verdict(text, text, "exact") == "right"


@pytest.mark.parametrize("grader", ["exact", "numeric", "regex", "code"])
@pytest.mark.parametrize("text", ["", " \n\t", "<think>18</think>", "<think>\n18"])
def test_every_grader_says_that_there_is_no_answer(grader: str, text: str) -> None:
    task, options = own(grader)
    assert task.has_answer(text, {"answer": "18"}, options) is False


# Thoughts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("18", "18"),
        ("<think>17</think>18", "18"),
        ("<think>\n17\n</think>\n\n18", "\n\n18"),
        ("17</think>18", "18"),
        ("<think>17", ""),
        ("Hm. <think>17", "Hm. "),
        ("<thinking>17</thinking>18", "18"),
        ("<reasoning>17</reasoning>18", "18"),
        ("<THINK>17</Think>18", "18"),
        ("< think >17</ think >18", "18"),
        ("[THINK]17[/THINK]18", "18"),
        ("◁think▷17◁/think▷18", "18"),
        ("<seed:think>17</seed:think>18", "18"),
        ("<think>1</think>A<think>2</think>B", "AB"),
        ("<think>a<think>b</think>c</think>18", "18"),
        ("a</think>b</think>18", "18"),
        ("</think>18", "18"),
        ("<think></think>18", "18"),
        ("18<think>17</think>", "18"),
        ("x.split('</think>')", "x.split('</think>')"),
        ('"<think>"', '"<think>"'),
        ("x < think and y > 3", "x < think and y > 3"),
        ("I think 18", "I think 18"),
        ("<thinker>18", "<thinker>18"),
    ],
)
def test_a_thought_is_no_part_of_the_answer(completion: str, answer: str) -> None:
    assert answer_of(completion) == answer


@given(st.text(), st.text())
def test_whatever_is_thought_the_answer_stays(thought: str, answer: str) -> None:
    if answer_of(thought + answer) == thought + answer:
        assert answer_of(f"<think>{thought}</think>{answer}") == answer
        assert answer_of(thought) == thought


@pytest.mark.parametrize("text", ["<think>" * 100_000, "</think>" * 100_000, "<think></think>" * 50_000, "<" * 500_000])
def test_many_tags_are_read_in_linear_time(text: str) -> None:
    assert len(answer_of(text)) <= len(text)


def test_no_grader_counts_a_thought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_alone.py").write_text("def right(answer, reference):\n    return reference in answer\n")
    monkeypatch.syspath_prepend(tmp_path)
    for grader in ("exact", "numeric", "regex", "mine_alone:right"):
        assert grade("<think>It is 17.</think>18", "18", grader)
        assert not grade("<think>It is 18.</think>17", "18", grader)
        assert not grade("<think>It is 18", "18", grader)
    for name, reference, options in (
        ("gsm8k", {"answer": "18"}, {"rule": "flexible"}),
        ("triviaqa", {"aliases": ["18"]}, TriviaqaGradingConfig().model_dump()),
        ("tiny_world", {"answer": "18"}, {}),
    ):
        assert get_task(name).grade("<think>17</think>18", reference, options)
        assert not get_task(name).grade("17 <think>18", reference, options)
