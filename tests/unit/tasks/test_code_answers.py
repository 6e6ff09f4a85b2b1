"""Code in answers as models write them: each right answer passes and its wrong twin, with 3 for 2, does not."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.config.grading import HumanevalGradingConfig
from firewall_ray.config.queries import CustomTaskOptions
from firewall_ray.tasks import get_task
from firewall_ray.tasks.code_answer import find_program
from firewall_ray.tasks.custom import CustomTask
from firewall_ray.tasks.humaneval import build_program, complete

OPTIONS = {**HumanevalGradingConfig().model_dump(), "isolation": "unsafe"}  # our own programs, on any machine
ROW = {
    "prompt": 'def twice(x):\n    """Two times x.\n    >>> twice(2)\n    4\n    """\n',
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
    "entry_point": "twice",
}
IMPORTS = {
    "prompt": 'from typing import List\n\n\ndef twice(xs: List[int]) -> List[int]:\n    """Two times each."""\n',
    "test": "def check(candidate):\n    assert candidate([3]) == [6]\n",
    "entry_point": "twice",
}
DEF = "def twice(x):\n    return 2 * x\n"
FENCED = f"```python\n{DEF}```"


def grade(completion: str, row: dict[str, Any] = ROW) -> bool:
    return get_task("humaneval").grade(completion, row, OPTIONS)


def has_answer(completion: str) -> bool:
    return get_task("humaneval").has_answer(completion, ROW, OPTIONS)


ANSWERS = {
    # Fences
    "a fence": FENCED,
    "no label": f"```\n{DEF}```",
    "another label": f"```Python3\n{DEF}```",
    "a label with attributes": f'```python title="twice.py"\n{DEF}```',
    "a label in braces": f"```{{.python}}\n{DEF}```",
    "tildes": f"~~~python\n{DEF}~~~",
    "tildes, never closed": f"~~~python\n{DEF}",
    "tildes around a body": "~~~\n    return 2 * x\n~~~",
    "four backticks": f"````python\n{DEF}````",
    "a space before the fence": f" {FENCED}",
    "a space before the prose": f" Here is the function:\n\n{FENCED}\n",
    "four spaces before the prose": f"    Here is the function:\n\n{FENCED}\n",
    "prose around": f"Sure!\n\n{FENCED}\n\nIt doubles `x`.",
    "prose without a blank line": f"Sure!\n{FENCED}\nIt doubles `x`.",
    "never closed": f"Sure:\n```python\n{DEF}",
    "never closed, cut in a call": f"```python\n{DEF}\nprint(twice(",
    "windows' line ends": FENCED.replace("\n", "\r\n"),
    "a heading before": f"### Solution\n{FENCED}",
    "a word before the opening fence": f"Answer: {FENCED}",
    "the closing fence behind the code": "```python\ndef twice(x):\n    return 2 * x```",
    "a quotation": "> ```python\n> def twice(x):\n>     return 2 * x\n> ```",
    "details in HTML": f"<details>\n{FENCED}\n</details>",
    # Lists
    "a numbered list": "1. Double it:\n   ```python\n   def twice(x):\n       return 2 * x\n   ```\n2. Done.",
    "a list of dashes": "- Double it:\n  ```python\n  def twice(x):\n      return 2 * x\n  ```\n- Done.",
    "deep in a list": "- Double it:\n\n      ```python\n      def twice(x):\n          return 2 * x\n      ```\n",
    "four spaces under a paragraph": "Double it:\n    ```python\n    def twice(x):\n        return 2 * x\n    ```\n",
    "a nested list": "1. First\n   - then\n     ```py\n     def twice(x):\n         return 2 * x\n     ```\n",
    "a tenth step": "10. Double it:\n   ```python\n   def twice(x):\n       return 2 * x\n   ```\n",
    "a list whose code is not indented": "1. Double it:\n   ```python\ndef twice(x):\n    return 2 * x\n```\n",
    "an indented docstring with a fence in a list": (
        "1. So:\n   ```python\n   def twice(x):\n       '''\n       ```\n       twice(1)\n       ```\n"
        "       '''\n       return 2 * x\n   ```"
    ),
    # The prompt opened the fence
    "code, closing fence, prose": f"{DEF}```\n\nThis function doubles x.",
    "body, closing fence, prose": "    return 2 * x\n```\n\nThis function doubles x.",
    "body without its indent, closing fence": "return 2 * x\n```\nThis doubles x.",
    "code, closing fence, an example": f"{DEF}```\n\nUse it so:\n\n```python\nprint(twice(int(input())))\n```",
    # Fences in docstrings
    "a fence in a docstring": "```python\ndef twice(x):\n    '''\n    ```\n    twice(1)\n    ```\n    '''\n    return 2 * x\n```",
    "a fence in a docstring of two spaces": (
        "```python\ndef twice(x):\n  '''\n  ```\n  twice(1)\n  ```\n  '''\n  return 2 * x\n```\nDone."
    ),
    "a fence in a docstring at the line's start": (
        'Hi\n```python\ndef twice(x):\n    """\n```python\ntwice(1)\n```\n    """\n    return 2 * x\n```'
    ),
    "a fence in a body's comment": "    # ```\n    return 2 * x\n",
    # Several blocks
    "imports in a block": (
        "First:\n```python\nfrom operator import mul\n```\nThen:\n```python\ndef twice(x):\n    return mul(2, x)\n```"
    ),
    "a star import in a block": "```python\nfrom operator import *\n```\n```python\ndef twice(x):\n    return mul(2, x)\n```",
    "a helper before": "```python\ndef two():\n    return 2\n```\nand\n```python\ndef twice(x):\n    return two() * x\n```",
    "a helper after": "```python\ndef twice(x):\n    return two() * x\n```\nwith\n```python\ndef two():\n    return 2\n```",
    "a helper's import": (
        "```python\nimport operator\n```\n```python\nTWO = 2\ndef mul(x):\n    return operator.mul(TWO, x)\n```\n"
        "```python\ndef twice(x):\n    return mul(x)\n```"
    ),
    "a shell block before": f"```bash\npip install nothing\n```\n{FENCED}",
    "a shell block without a label": f"```\n$ python twice.py\n```\n{FENCED}",
    "a block of another language": "```js\nfunction twice(x) { return 3 * x }\n```\n" + FENCED,
    "a block of another language that defines the name": f"```text\ntwice = None\n```\n{FENCED}",
    "output after": f"{FENCED}\nOutput:\n```\n4\n```",
    "the idea before": f"First the idea:\n```\nx + x\n```\nand the code:\n{FENCED}\n",
    "the header first": f"The header is\n```python\n{ROW['prompt']}```\nand all of it\n{FENCED}",
    "a stub first": f"```python\ndef twice(x):\n    pass\n```\n{FENCED}",
    "an example that prints": f"{FENCED}\n```python\nprint(twice(2))\n```",
    "an example that asks": f"{FENCED}\n```python\nx = int(input())\nprint(twice(x))\n```",
    "an example that is wrong": f"{FENCED}\n```python\nassert twice(2) == 5\n```",
    "a test that needs a package": f"{FENCED}\n```python\nimport pytest\n\ndef test_twice():\n    assert twice(1) == 2\n```",
    "an example in the block that asks": f"```python\n{DEF}\nx = int(input())\nprint(twice(x))\n```",
    "an example in the block that is wrong": f"```python\n{DEF}\nassert twice(2) == 5\n```",
    "a main in the block": f"```python\n{DEF}\ndef main():\n    print(twice(int(input())))\n\nmain()\n```",
    "unit tests in the block": (
        f"```python\nimport unittest\n\n{DEF}\nclass T(unittest.TestCase):\n    def test(self):\n        assert twice(1) == 2\n"
        "\nunittest.main()\n```"
    ),
    "a table that the function reads": (
        "```python\nTABLE = {}\ndef twice(x):\n    return TABLE[x]\nfor i in range(9):\n    TABLE[i] = 2 * i\n```"
    ),
    "an attribute of the function": "```python\ndef twice(x):\n    return twice.two * x\ntwice.two = 2\n```",
    "a decorated function": "```python\nfrom functools import cache\n\n@cache\ndef twice(x):\n    return 2 * x\n```",
    "a function bound by an assignment": "```python\ntwice = lambda x: 2 * x\n```",
    "a future import": f"```python\nfrom __future__ import annotations\n\n{DEF}```",
    "a body in a fence": "```python\n    return 2 * x\n```",
    "a body in a fence without its indent": "The body:\n```python\ny = 2\nreturn y * x\n```",
    "a block with a longer name first": f"```\ndef twice_two(x):\n    return 0\n```\n{FENCED}",
    # No fence
    "a body": "    return 2 * x\n",
    "the header again": DEF,
    "the whole prompt again": f"{ROW['prompt']}    return 2 * x\n",
    "prose after the body": "    return 2 * x\n\nThis function doubles x.",
    "prose after the header and body": f"{DEF}\nThis function doubles x. It's simple.",
    "prose before the header": f"Here is the function:\n\n{DEF}",
    "prose around, no fence": f"Here's the function:\n\n{DEF}\nIt doubles x, doesn't it?",
    "a space before the header": f" {DEF}",
    "a space before an import": f" from operator import mul\n\n\n{DEF.replace('2 * x', 'mul(2, x)')}",
    "indented code in prose": "Here is the code:\n\n    def twice(x):\n        return 2 * x\n\nIt doubles x.",
    "a body after prose": "The body is:\n    return 2 * x\n",
    "a helper and prose between": f"def two():\n    return 2\n\nNow the function itself.\n\n{DEF.replace('2 *', 'two() *')}",
    "another function, cut": "    return 2 * x\n\n\ndef thrice(x):\n    return 3 * (",
    # The first indent, which "Answer: " swallows
    "three spaces": "   return 2 * x\n",
    "one space": " return 2 * x",
    "five spaces": "     return 2 * x\n",
    "none": "return 2 * x",
    "three, then four": "   y = 2\n    return y * x\n",
    "none, then four": "y = 2\n    return y * x\n",
    "one, then four": " y = 2\n    return y * x\n",
    "none, then four, a loop": "y = 0\n    for _ in range(2):\n        y += x\n    return y\n",
    "none, then eight": "for i in (2,):\n        return i * x\n",
    "none at all": "y = 2\nreturn y * x\n",
    "two each": "  y = 2\n  return y * x\n",
    "none, then two": "y = 2\n  return y * x\n",
    "a tab": "\treturn 2 * x\n",
    "an empty line first": "\n    return 2 * x\n",
    "three, then prose": "   y = 2\n    return y * x\n\nThat is all.",
    # Thoughts
    "a draft": f"<think>\n```python\ndef twice(x):\n    return x  # wrong\n```\n</think>\n{FENCED}",
    "a thought that the prompt began": f"Maybe ```python\ndef twice(x):\n    return x\n```</think>\n{FENCED}",
    "a thought before a body": "<think>Easy.</think>\n    return 2 * x\n",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_right_answer_is_found_and_the_same_with_wrong_code_is_wrong(name: str) -> None:
    assert grade(ANSWERS[name]) is True, build_program(ANSWERS[name], ROW)
    assert has_answer(ANSWERS[name])


@pytest.mark.parametrize("name", [name for name, answer in ANSWERS.items() if "2 * x" in answer])
def test_wrong_code_stays_wrong(name: str) -> None:
    assert grade(ANSWERS[name].replace("2 * x", "3 * x")) is False


@pytest.mark.parametrize(
    "answer",
    [
        "from typing import List\n\n\ndef twice(xs: List[int]) -> List[int]:\n    return [2 * x for x in xs]\n",
        " from typing import List\n\n\ndef twice(xs: List[int]) -> List[int]:\n    return [2 * x for x in xs]\n",
        "```python\ndef twice(xs: List[int]) -> List[int]:\n    return [2 * x for x in xs]\n```",  # the prompt's import serves
        "Sure.\nfrom typing import List\n\ndef twice(xs: List[int]) -> List[int]:\n    return [2 * x for x in xs]\n\nDone.",
        "   return [2 * x for x in xs]",
    ],
)
def test_the_prompts_own_imports_are_there(answer: str) -> None:
    assert grade(answer, IMPORTS) is True


@pytest.mark.parametrize(
    "completion",
    [
        "    return 2 * x\n",
        "",
        "\n\n",
        "    return '`'",
        "    x = '``'\n    return f'```{x}'\n",
        "no code",
        "Sorry",
        f"{DEF}x = int(input())\n",
        "    return 2 * x\n\nassert twice(2) == 5\n",
        "    return (\n",
        "    x = 1\n      y = 2\n",
        "\0",
        "\ud800",
    ],
)
def test_what_python_can_execute_or_nobody_can_mend_is_the_official_program(completion: str) -> None:
    assert complete(ROW["prompt"], completion, "twice") == ROW["prompt"] + completion
    assert build_program(completion, ROW) == ROW["prompt"] + completion + "\n" + ROW["test"] + "\ncheck(twice)"


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "\n",
        "I'm sorry, I can't help with that.",
        "The function doubles its input.",
        "```\n```",
        "<think>def twice(x): return 2 * x",
        "```bash\npip install twice\n```",
        "It returns 4 for 2, for example: twice(2).",
    ],
)
def test_prose_and_nothing_are_no_answers(completion: str) -> None:
    assert not has_answer(completion)
    assert get_task("humaneval").verdict(completion, "stop", ROW, OPTIONS) == "no_answer"


@pytest.mark.parametrize("completion", ["    return 3 * x", "def twice(x):\n    return (", "    y ="])
def test_broken_or_wrong_code_is_an_answer(completion: str) -> None:
    assert get_task("humaneval").verdict(completion, "stop", ROW, OPTIONS) == ("wrong" if "=" not in completion else "no_answer")


@given(
    st.text()
    | st.lists(
        st.sampled_from([*DEF.split("\n"), "```", "~~~", "   ```python", "- ", "> ", "prose", "x = 1", "'''", "\t", "@", "("])
    ).map("\n".join)
)
def test_no_completion_breaks_the_search(completion: str) -> None:
    assert isinstance(build_program(completion, ROW), str)
    has_answer(completion)


@pytest.mark.parametrize(
    "text",
    [
        "```\n" * 20_000,
        "import x\nprose\n" * 5_000,
        "> " * 20_000,
        "- " * 20_000,
        "def f(:\n" * 5_000,
        "(" * 40_000,
        "-" * 49_000 + "1",
        "x=" * 20_000,
        "~~~\n'''\n" * 8_000,
        "`" * 49_000,
        " " * 49_000,
        "1+" * 20_000 + "1",
        "'''\n```\n" * 5_000,
        "a" * 1_000_000,
    ],
)
def test_huge_and_nested_texts_are_searched_in_time(text: str) -> None:
    assert build_program(text, ROW).endswith("check(twice)")  # what is quadratic would hit the test's timeout


# The grader `code` ---------------------------------------------------------------------------------------------------


def grade_code(completion: str, tests: str) -> bool:
    options = CustomTaskOptions(source="-", grader="code", sandbox={"isolation": "unsafe"}).model_dump(mode="json")  # type: ignore[arg-type]
    return CustomTask("mine", CustomTaskOptions(source="-", grader="code")).grade(completion, {"answer": tests}, options)


@pytest.mark.parametrize(
    ("completion", "tests"),
    [
        (DEF, "assert twice(3) == 6"),
        (f" Sure:\n{FENCED}", "assert twice(3) == 6"),
        (f" {DEF}", "assert twice(3) == 6"),
        (
            "```bash\npip install nothing\n```\n```python\nclass Stack:\n    def __init__(self):\n        self.a = []\n```",
            "assert Stack().a == []",
        ),
        ("~~~\nclass A:\n    b = 1\n~~~", "assert A.b == 1"),
        ("```python\nONE = 1\n```\n```python\ndef two():\n    return 2 * ONE\n```", "assert two() == 2"),
        ("```python\ndef one():\n    return 1\n```\n```python\ndef two():\n    return 2\n```", "assert one() + two() == 3"),
        (f"{FENCED}\nExample:\n```python\nprint(twice(int(input())))\n```", "assert twice(3) == 6"),
        ("The constant is\n```\nanswer = 42\n```", "assert answer == 42"),
        (f"{DEF}\nThis doubles x.", "assert twice(3) == 6"),
        (f"{DEF}```\nThis doubles x.", "import math\nassert twice(3) == math.sqrt(36)"),
        (f"{FENCED}", "def check(f):\n    for x in range(3):\n        assert f(x) == 2 * x\ncheck(twice)"),
    ],
)
def test_code_of_ones_own_tests_is_found(completion: str, tests: str) -> None:
    assert grade_code(completion, tests) is True


def test_code_without_the_name_that_the_tests_want_is_wrong() -> None:
    assert grade_code("```python\ndef thrice(x):\n    return 2 * x\n```", "assert twice(3) == 6") is False
    assert find_program("```python\ndef thrice(x):\n    return 2 * x\n```", ["twice"]) is None


# Stop strings --------------------------------------------------------------------------------------------------------


def test_no_stop_string_makes_a_right_answer_wrong(shared_data: Path) -> None:
    """The body, the header again with it, and the same in a fence, of every problem: none is cut before its end."""
    task = get_task("humaneval")
    with gzip.open(shared_data / "HumanEval.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 164
    for row in rows:
        whole = row["prompt"] + row["canonical_solution"]
        fenced = f"Sure.\n\n```python\n{whole}```\n"
        for answer in (row["canonical_solution"], whole, f"\n{whole}", fenced, f"```python\n# The function\n{whole}```"):
            assert not [stop for stop in task.stop if stop in answer], row["task_id"]
        # What a stop may cut: examples behind the function.
        for example in (
            "\nif __name__ == '__main__':\n    print(1)\n```",
            "\nprint(1)\n```",
            "\nassert True\n```",
            "\nQuestion: 1",
        ):
            cut = min(at for at in map(f"```python\n{whole}{example}".find, task.stop) if at >= 0)
            text = complete(row["prompt"], f"```python\n{whole}{example}"[:cut], row["entry_point"])
            assert text == complete(row["prompt"], f"```python\n{whole}```", row["entry_point"]), row["task_id"]
