"""GSM8K (Cobbe et al. 2021): grade-school word problems with one number as the answer.

Rows in: `question` and `answer`, from the `datasets` library or a local folder. Rows out: `Query`, whose reference is
``{"answer": "18", "solution": "9 * 2 = 18\\n#### 18"}``: the text after the answer's "#### ", commas removed, which grades; and the
data set's whole `answer` with its reasoning, which Hybrid LLM compares responses with. Three published rules grade an answer, and
one of ours:

* ``official``: openai/grade-school-math, the first "#### n", compared as strings;
* ``strict``: lm-evaluation-harness' strict-match, the same extraction after its own clean-up;
* ``flexible``: its flexible-extract, the last thing that looks like a number;
* ``final``: the final number as `numbers` reads it, compared as a number. For chat models, which write LaTeX, units and a sentence
  behind the answer.
"""

import json
import random
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from firewall_ray.errors import TaskError
from firewall_ray.tasks.base import Query, Task, make_query
from firewall_ray.tasks.numbers import final_number, same_number
from firewall_ray.tasks.records import Record, read_records
from firewall_ray.tasks.splits import draw_test

RULES = ("official", "strict", "flexible")
INVALID = "[invalid]"  # what both official programs call a completion without an answer

# As published, in openai/grade-school-math's ANS_RE and in the filters of lm-evaluation-harness' gsm8k.yaml, and so with their
# oddities: "$$" and ".." are numbers to the second.
_MARKED = re.compile(r"#### (\-?[0-9\.\,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def extract(completion: str, rule: str) -> str:
    """The answer that a published `rule` reads from a completion, or "[invalid]". Linear in the completion's length.

    >>> extract("9 * 2 = <<9*2=18>>18.\\n#### 1,800", "official"), extract("#### 1,800", "strict")
    ('1800', '1,800')
    >>> extract("That makes $18", "official"), extract("That makes $18", "flexible")
    ('[invalid]', '$18')
    """
    if rule == "flexible":
        last = deque(_NUMBER.finditer(completion), maxlen=1)
        return last[0].group() if last else INVALID
    first = _MARKED.search(completion)
    if first is None:
        return INVALID
    return first.group(1).replace(",", "") if rule == "official" else first.group(1)


def normalise(answer: str) -> str:
    """lm-evaluation-harness' clean-up before its exact match, of prediction and gold alike.

    It also deletes everything up to "#### "; that has no work left here, since an extracted answer holds no "#".

    >>> normalise("$1,800.")
    '1800'
    """
    return answer.replace(",", "").replace("$", "").removesuffix(".").lower()


class Gsm8k(Task):
    """The grading option is `rule`, see the module."""

    name = "gsm8k"
    stop = ("\nQuestion:",)  # Asked without examples, a base model answers and goes on with a question of its own.
    max_tokens = 512  # The longest reference answer has about 400 tokens; what is longer has lost its way.

    def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
        """Train in a seeded order, less its last `num_validation` rows, which are validation; then test: in its own order, or
        `num_test` rows of it that the seed draws.
        """
        source, num_validation = options["source"], options["num_validation"]
        # Read whole, to be shuffled.
        train = list(read_records(self.name, source, "train"))
        if num_validation > len(train):
            raise TaskError(
                f"queries.tasks.gsm8k.num_validation is {num_validation:,}, but train of {source} has only {len(train):,} rows."
            )
        random.Random(options["seed"]).shuffle(train)
        boundary = len(train) - num_validation
        yield from (self._query("train", record) for record in train[:boundary][: options["num_train"]])
        yield from (self._query("validation", record) for record in train[boundary:])
        test = list(read_records(self.name, source, "test"))
        yield from (self._query("test", record) for record in draw_test(test, options["num_test"], options["seed"]))

    def is_right(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        rule = options["rule"]
        if rule == "final":
            return same_number(final_number(answer), final_number(reference["answer"]))
        extracted = extract(answer, rule)
        if rule == "official":
            return extracted == reference["answer"]
        return normalise(extracted) == normalise(reference["answer"])

    def can_read(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        rule = options["rule"]
        return final_number(answer) is not None if rule == "final" else extract(answer, rule) != INVALID

    def _query(self, split: str, record: Record) -> Query:
        question, solution = record.text("question"), record.text("answer")
        # The data set marks its own answers, so the official rule reads them whatever rule grades.
        answer = extract(solution, "official")
        if answer == INVALID:
            raise TaskError(f"gsm8k: {record.where}: `answer` must hold '#### <number>', but it ends in {solution[-40:]!r}.")
        return make_query(self.name, split, question, json.dumps({"answer": answer, "solution": solution}))
