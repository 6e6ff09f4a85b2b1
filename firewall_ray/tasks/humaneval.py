"""HumanEval (Chen et al. 2021): a Python function's header and docstring, to be completed and executed against tests.

Rows in: `prompt`, `test` and `entry_point`, from the `datasets` library or a local folder. Rows out: `Query`, all of the test
split (the paper evaluates on it out of domain), whose question is the header with its docstring and whose reference is
``{"prompt", "test", "entry_point"}``, and ``canonical_solution`` where the data set has it: the text that BARTScore compares an
answer with. Models and routers never read the tests: a query's prompt holds its question alone.

From an answer to a program, in this order:

1. What goes on where the prompt ends, and parses, is the official program: prompt, answer, the tests, ``check(entry_point)``.
   An answer that begins with the header again needs no rule: its definition comes second and wins.
2. What goes on there but for prose behind it, or but for the indent of its first line, which the prompt's "Answer: " swallows, is
   mended so that it does.
3. Else the code that defines the entry point is looked for, see `firewall_ray.tasks.code_answer`, and then a body in a fence.

So an answer that the official checker can execute gets the official verdict, see `firewall_ray.sandbox.program` for where
isolation differs.
"""

import ast
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from firewall_ray.errors import TaskError
from firewall_ray.sandbox.program import PASSED, Limits
from firewall_ray.sandbox.sandbox import shared_sandbox
from firewall_ray.tasks.base import PROGRAM_VERDICT_S, Query, Task, make_query
from firewall_ray.tasks.code_answer import (
    MAX_CHARACTERS,
    fenced_blocks,
    find_program,
    is_code,
    is_stub,
    longest_head,
    names_bound,
    parses,
    with_backticks,
)
from firewall_ray.tasks.records import Record, read_records
from firewall_ray.tasks.splits import draw_test

# Of a body that follows prose.
_INDENTED_LINE = re.compile(r"^[ \t]+(?=\S)", re.MULTILINE)


def build_program(completion: str, reference: Mapping[str, Any]) -> str:
    """What is executed: openai/human-eval's check_correctness, with the completion made to go on where the prompt ends."""
    source = complete(reference["prompt"], completion, reference["entry_point"])
    return f"{source}\n{reference['test']}\ncheck({reference['entry_point']})"


def complete(prompt: str, answer: str, entry_point: str) -> str:
    """Prompt and answer as one source, by the rules of the module; joined as they are where these find no code.

    >>> prompt = "def one():\\n    'One.'\\n"
    >>> complete(prompt, " return 1\\n\\nIt returns 1.", "one")
    "def one():\\n    'One.'\\n    return 1\\n\\n"
    >>> complete(prompt, "Here it is:\\n```python\\ndef one():\\n    return 1\\n```\\n", "one")
    "def one():\\n    'One.'\\ndef one():\\n    return 1\\n"
    """
    official, answer = prompt + answer, with_backticks(answer)
    if len(answer) > MAX_CHARACTERS or parses(prompt + answer, as_module=True):
        return official
    return next((source for source in _sources(prompt, answer, entry_point) if parses(source, as_module=True)), official)


def _sources(prompt: str, answer: str, entry_point: str) -> Iterator[str]:
    yield from _continuations(prompt, answer, entry_point)
    program = find_program(answer, [entry_point], given=names_bound(prompt))
    if program is not None:
        # Alone where it cannot follow: `from __future__` must come first.
        yield from (prompt + program, program)
    for _, block in fenced_blocks(answer):
        yield from _continuations(prompt, block, entry_point)
    # A body after prose.
    indented = _INDENTED_LINE.search(answer)
    if indented is not None:
        yield from _continuations(prompt, answer[indented.start() :], entry_point)


def _continuations(prompt: str, text: str, entry_point: str) -> Iterator[str]:
    """The prompt with the text behind it, as far as it parses and the function gets a body, for each indent it may have lost."""
    text = text.replace("\r\n", "\n").lstrip("\n")
    first, _, rest = text.partition("\n")
    body, begin = _indent_of_body(prompt), first.lstrip()
    mended = (
        text.lstrip(),
        f"{body}{begin}\n{rest}",
        textwrap.indent(textwrap.dedent(text), body),
        textwrap.indent(f"{begin}\n{textwrap.dedent(rest)}", body),
    )
    # Where the first line stands right, an indent behind it that is wrong is the model's own.
    for variant in (text, *(mended if first != body + begin else ())):
        source = longest_head(prompt + variant)
        tree = parses(source)
        named = [node for node in tree.body if getattr(node, "name", None) == entry_point] if tree is not None else []
        if named and not is_stub(named[-1]):
            yield source


def _indent_of_body(prompt: str) -> str:
    """Of the docstring that the prompt ends in."""
    tree = parses(prompt)
    last = tree.body[-1] if tree is not None and tree.body else None
    column = last.body[0].col_offset if isinstance(last, ast.FunctionDef | ast.AsyncFunctionDef) else 4
    return " " * column


class HumanEval(Task):
    """The grading options are the sandbox's: isolation, timeout_s, memory_mib, scratch_mib."""

    name = "humaneval"
    verdict_s = PROGRAM_VERDICT_S
    # What follows a function and never stands before or in one. The Codex paper's five ("\nclass", "\ndef", "\n#", "\nif" and
    # "\nprint") end an answer that begins with imports, a helper, a comment or a fence before its function has begun. A base model
    # that goes on with another function does no harm: the program executes with it, or is cut before it.
    stop = ("\nQuestion:", "\nif __name__", "\nprint(", "\nassert ")
    max_tokens = 512  # The longest of the canonical solutions is half of that; the rest is for a header repeated.

    def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
        """All problems in their own order, as test; or `num_test` of them that the seed draws.

        Raises TaskError naming the row and field that is wrong.
        """
        records = list(read_records(self.name, options["source"], "test", subset="openai_humaneval"))
        yield from (self._query(record) for record in draw_test(records, options["num_test"], options.get("seed", 0)))

    def is_right(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """Execute the program. Raises SandboxUnavailable where this machine does not allow the isolation asked for."""
        limits = Limits(options["timeout_s"], options["memory_mib"], options["scratch_mib"])
        return shared_sandbox(limits, options["isolation"]).run(build_program(answer, reference)) == PASSED

    def can_read(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        return is_code(answer)

    def _query(self, record: Record) -> Query:
        reference = {name: record.text(name) for name in ("prompt", "test", "entry_point")}
        # It becomes part of the program.
        if not reference["entry_point"].isidentifier():
            raise TaskError(
                f"{record.where}: `entry_point` must be the name of a function, there is {reference['entry_point']!r:.60}."
            )
        # No verdict needs it, so a file without it, such as a user's own problems, is as good.
        if isinstance(solution := record.value("canonical_solution"), str):
            reference["canonical_solution"] = solution
        return make_query(self.name, "test", reference["prompt"], json.dumps(reference))
