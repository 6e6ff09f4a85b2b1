"""What a benchmark is: a loader of queries, a prompt and a grader, in one file each.

Rows in: the benchmark's own records. Rows out: `Query`. A completion and a reference go in, a verdict comes out.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.tasks.thinking import answer_of


class Query(NamedTuple):
    """One row of `queries/`. `reference` is JSON in the task's own form; `split` is train, validation or test."""

    query_id: str
    task: str
    split: str
    question: str
    prompt: str
    reference: str


def query_id(task: str, question: str) -> str:
    """Stable identifier: the first 16 hex digits of SHA-256 over task and question (64 bits).

    >>> query_id("gsm8k", "How many?")
    'f6cfadd18c42f089'
    """
    # JSON of the pair, not the two texts joined: ("a", "bc") and ("ab", "c") stay apart. It also escapes what UTF-8 cannot hold.
    return hashlib.sha256(json.dumps([task, question]).encode()).hexdigest()[:16]


def prompt_id(prompt: str) -> str:
    """The `query_id` of a prompt of no benchmark: one that a user, or a client of the server, brought along."""
    return query_id("user", prompt)


def make_query(task: str, split: str, question: str, reference: str) -> Query:
    return Query(query_id(task, question), task, split, question, PROMPT_TEMPLATE.format(question=question), reference)


VERDICT_S = 5e-5  # a text normalised and compared: 3 to 80 microseconds by the rules there are
PROGRAM_VERDICT_S = 0.025  # a process forked and a program run in it; one that loops takes its timeout, which nobody can tell


class Task(ABC):
    """A benchmark. `stop` and `max_tokens` are its defaults for sampling in a raw prompt, `chat_max_tokens` in a chat, where no
    string stops a model but its own end of turn; the config can override them.

    verdict_s: about how long one verdict takes, by which grading is cut into blocks; only the order of magnitude matters.
    """

    name: str
    verdict_s: float = VERDICT_S
    stop: tuple[str, ...]
    max_tokens: int
    chat_max_tokens: int = 1_024  # an instruct model reasons, quotes the question and explains

    @abstractmethod
    def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
        """Yield the task's queries, split by split. Raises TaskError naming the option or row that is wrong."""

    def grade(self, completion: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """Is this completion right, less what the model thought before its answer?

        `reference` is the query's, parsed. `options` is the config's section `grading.<task>`, empty where there is none. Equal
        completions of a query are graded once.
        """
        return self.is_right(answer_of(completion), reference, options)

    def has_answer(self, completion: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """Is there anything in the completion that this task's grader can read as an answer, right or not?"""
        return self.can_read(answer_of(completion), reference, options)

    @abstractmethod
    def is_right(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """The task's own rule, of a completion without its thoughts. Never raises for any `answer`; a wrong one is False.

        Raises SystemFailure where this machine can grade nothing at all.
        """

    def can_read(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """The task's own rule for `has_answer`. Never raises."""
        return bool(answer.strip())

    def verdict(self, completion: str, finish_reason: str | None, reference: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        """One of `schemas.VERDICTS`. finish_reason: "length" where the limit of tokens cut the completion off."""
        if self.grade(completion, reference, options):
            return "right"
        # Before "no answer": a longer limit might have brought one.
        if finish_reason == "length":
            return "truncated"
        return "wrong" if self.has_answer(completion, reference, options) else "no_answer"
