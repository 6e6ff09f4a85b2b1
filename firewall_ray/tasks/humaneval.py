"""HumanEval (Chen et al. 2021): a Python function's header and docstring, to be completed and executed against tests.

Rows in: `prompt`, `test` and `entry_point`, from the `datasets` library or a local folder. Rows out: `Query`, all of the test
split (the paper evaluates on it out of domain), whose question is the header with its docstring and whose reference is
``{"prompt", "test", "entry_point"}``. Models and routers never read the tests: a query's prompt holds its question alone.

From a completion to a program, in this order:

1. A completion with a line that starts with three backticks is read as Markdown, since no Python outside a string has such
   a line. Its code is what precedes the fence where that is indented, a function's body with the fence closing it; else
   the first fenced block that defines the entry point, and without any the first block.
2. The program is the official one: prompt, code, the tests, and ``check(entry_point)``. A completion that begins with the
   header again needs no rule: its definition comes second and wins.

So a completion without a fence gets the official verdict, see `firewall_ray.sandbox.program` for where isolation differs.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from firewall_ray.errors import TaskError
from firewall_ray.sandbox.program import PASSED, Limits
from firewall_ray.sandbox.sandbox import shared_sandbox
from firewall_ray.tasks.base import PROGRAM_VERDICT_S, Query, Task, make_query
from firewall_ray.tasks.records import Record, read_records

_FENCE = re.compile(r"^[ \t]*```[^\n]*$", re.MULTILINE)


def extract_code(completion: str, entry_point: str) -> str:
    """The code of a completion by rule 1 of the module; the completion itself where it holds no fence.

    >>> extract_code("Here it is:\\n```python\\ndef one():\\n    return 1\\n```\\nIt returns 1.", "one")
    '\\ndef one():\\n    return 1\\n'
    >>> extract_code("    return 1\\n```\\n", "one")
    '    return 1\\n'
    """
    parts = _FENCE.split(completion)  # text, block, text, block, ...; a block that is never closed ends with the completion
    first_line = next((line for line in parts[0].splitlines() if line.strip()), "")
    if len(parts) == 1 or first_line.startswith((" ", "\t")):
        return parts[0]
    # \b: another function's longer name is no definition of this one. At a line's start: a method of the name is none either.
    defines = re.compile(rf"^(async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    return next((block for block in parts[1::2] if defines.search(block)), parts[1])


def build_program(completion: str, reference: Mapping[str, Any]) -> str:
    """What is executed: openai/human-eval's check_correctness, with the code of the completion."""
    code = extract_code(completion, reference["entry_point"])
    return f"{reference['prompt']}{code}\n{reference['test']}\ncheck({reference['entry_point']})"


class HumanEval(Task):
    """The grading options are the sandbox's: isolation, timeout_s, memory_mib, scratch_mib."""

    name = "humaneval"
    verdict_s = PROGRAM_VERDICT_S
    # The Codex paper's, except that a blank line must precede "def": an answer that begins with the header, or with a fence
    # and then the header, would else end before it began. A base model that goes on writes a blank line between functions.
    stop = ("\nclass", "\n\ndef", "\n#", "\nif", "\nprint", "\nQuestion:")
    max_tokens = 512  # The longest of the canonical solutions is half of that; the rest is for a header repeated.

    def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
        """All problems in their own order, as test. Raises TaskError naming the row and field that is wrong."""
        records = read_records(self.name, options["source"], "test", subset="openai_humaneval")
        yield from (self._query(record) for record in itertools.islice(records, options["num_test"]))

    def grade(self, completion: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """Execute the program. Raises SandboxUnavailable where this machine does not allow the isolation asked for."""
        limits = Limits(options["timeout_s"], options["memory_mib"], options["scratch_mib"])
        return shared_sandbox(limits, options["isolation"]).run(build_program(completion, reference)) == PASSED

    def _query(self, record: Record) -> Query:
        reference = {name: record.text(name) for name in ("prompt", "test", "entry_point")}
        # It becomes part of the program.
        if not reference["entry_point"].isidentifier():
            raise TaskError(
                f"{record.where}: `entry_point` must be the name of a function, there is {reference['entry_point']!r:.60}."
            )
        return make_query(self.name, "test", reference["prompt"], json.dumps(reference))
