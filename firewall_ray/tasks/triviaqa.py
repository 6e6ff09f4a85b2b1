"""TriviaQA (Joshi et al. 2017), closed book: trivia questions, each with every alias of its answer.

Rows in: `question` and `answer` as the `datasets` library has them (`answer` holds `normalized_aliases` and `aliases`), or
plainly `question` and `aliases`, with `normalized_aliases` or without. Rows out: `Query`, whose reference is
``{"aliases": [..], "names": [..]}``: the normalized aliases where there are any, which the official program compares with; and the
answer as people write it, the data set's main one first, which Hybrid LLM compares responses with.

Training and validation are carved from the data set's train. Test is its validation: the answers of its test were never
published. The data set lists a question once for the web and once for Wikipedia: repetitions are left out, and what train
shares with test stays in test alone.

An answer is right when it equals an alias, both normalised by mandarjoshi90/triviaqa's triviaqa_evaluation.py; or, by a rule of
ours for models that answer in sentences, when its first line holds one.
"""

import json
import logging
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from firewall_ray.errors import TaskError
from firewall_ray.tasks.base import Query, Task, make_query
from firewall_ray.tasks.records import Record, read_file, read_records
from firewall_ray.tasks.refusals import is_refusal
from firewall_ray.tasks.splits import draw_test

logger = logging.getLogger("firewall_ray")

# The official program's marks, its three beyond ASCII included.
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
ALIASES = ("normalized_aliases", "aliases")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalise(answer: str) -> str:
    """The official normalize_answer: lower case, punctuation and articles to spaces, one space between words.

    SQuAD's, for comparison, deletes punctuation. Accents stay, and so do dashes and quotes beyond ASCII's.

    >>> normalise("The U.S._Dollar"), normalise("O'Neill"), normalise("1,000")
    ('u s dollar', 'o neill', '1 000')
    """
    return " ".join(_ARTICLE.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, aliases: Iterable[str]) -> bool:
    """Whether the whole prediction is one of the aliases, both normalised.

    >>> exact_match("the beatles!", ["Beatles", "Fab Four"]), exact_match("It was the Beatles", ["Beatles"])
    (True, False)
    """
    answer = normalise(prediction)
    return any(answer == normalise(alias) for alias in aliases)


def contains_alias(prediction: str, aliases: Iterable[str]) -> bool:
    """Whether the first line that has a word holds an alias as whole words, or all of it is one; normalised as for `exact_match`.

    The line, not the first sentence: nobody can tell an abbreviation's point from a sentence's end, an alias may hold one, and
    benchmarks/triviaqa_agreement.py finds that people read on.

    >>> contains_alias("It was J. K. Rowling, in 1997.", ["J.K. Rowling"]), contains_alias("A parish.", ["Paris"])
    (True, False)
    """
    line = f" {next(filter(None, map(normalise, prediction.splitlines())), '')} "
    # An alias that is nothing once the articles are gone is in every line.
    return any(f" {alias} " in line for alias in map(normalise, aliases) if alias) or exact_match(prediction, aliases)


def f1(prediction: str, aliases: Iterable[str]) -> float:
    """Largest F1 of the words in common with an alias, counted as often as both have them; in [0, 1].

    Two texts without a word have F1 0 (and match exactly), as in the official program. Raises ValueError without aliases.

    >>> f1("sunset sunset boulevard", ["sunset boulevard"])  # precision 2 / 3, recall 2 / 2
    0.8
    """
    return max(_f1(normalise(prediction).split(), normalise(alias).split()) for alias in aliases)


def _f1(prediction: list[str], alias: list[str]) -> float:
    num_common = (Counter(prediction) & Counter(alias)).total()
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(prediction), num_common / len(alias)
    return 2 * precision * recall / (precision + recall)


class Question(NamedTuple):
    """What is kept of a record: train is held in memory to be shuffled."""

    text: str
    aliases: list[str]
    names: list[str]  # with their capitals; the aliases themselves where the record has no others

    @property
    def key(self) -> str:
        """Equal for questions that differ in case or white space alone."""
        return " ".join(self.text.casefold().split())


class TriviaQa(Task):
    """The grading options are `match`: exact or contains, and `answer`: an exact match is with all of it, or its first line."""

    name = "triviaqa"
    stop = ("\n",)  # An answer is one line; after it a base model goes on with a question of its own.
    max_tokens = 32  # Names and titles. What is longer cannot equal an alias.
    chat_max_tokens = 256  # A sentence or two.

    def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
        """Train in a seeded order, less its last `num_validation` questions, which are validation; then test: in its own order, or
        `num_test` questions of it that the seed draws.

        Raises TaskError naming file and row for a question without aliases. Repetitions are counted in the log.
        """
        source = Path(options["source"]).expanduser()
        # Test first: what it holds is then left out of train.
        test, repeated_test = _unique(self._read_test(options["source"]), taken=set())
        records = () if source.is_file() else read_records(self.name, options["source"], "train", subset="rc.nocontext")
        train, repeated_train = _unique(map(_question, records), taken={question.key for question in test})
        if repeated_train or repeated_test:
            logger.info(
                "triviaqa: left out %s questions of train that are in test or repeated, and %s of test that are repeated",
                f"{repeated_train:,}",
                f"{repeated_test:,}",
            )
        num_validation = 0 if source.is_file() else options["num_validation"]
        if num_validation > len(train):
            raise TaskError(
                f"queries.tasks.triviaqa.num_validation is {num_validation:,}, but train of {source} has only {len(train):,} "
                "questions that are not in test."
            )
        random.Random(options["seed"]).shuffle(train)
        boundary = len(train) - num_validation
        # num_train cuts only here, so a smaller train has the same validation.
        yield from (self._query("train", question) for question in train[:boundary][: options["num_train"]])
        yield from (self._query("validation", question) for question in train[boundary:])
        yield from (self._query("test", question) for question in draw_test(test, options["num_test"], options["seed"]))

    def is_right(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        if options.get("match") == "contains":
            return contains_alias(answer, reference["aliases"])
        return exact_match(answer.strip().partition("\n")[0] if options["answer"] == "first_line" else answer, reference["aliases"])

    def can_read(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        return bool(normalise(answer)) and not is_refusal(answer)

    def _read_test(self, source: str) -> Iterator[Question]:
        """The data set calls it validation; a folder may call it test, and a file is nothing else."""
        if Path(source).expanduser().is_file():
            return map(_question, read_file(self.name, Path(source).expanduser()))
        return map(_question, read_records(self.name, source, "validation", subset="rc.nocontext", other_names=("test",)))

    def _query(self, split: str, question: Question) -> Query:
        return make_query(self.name, split, question.text, json.dumps({"aliases": question.aliases, "names": question.names}))


def _question(record: Record) -> Question:
    """Raises TaskError naming the row where it has no question, or no alias."""
    # The data set's own form, or the plain one.
    answer = record.value("answer") if "answer" in record.fields else {name: record.value(name) for name in ALIASES}
    if not isinstance(answer, Mapping):
        raise TaskError(f"{record.where}: `answer` must be an object that holds `aliases`, there is {answer!r:.60}.")
    lists = {name: answer.get(name) or [] for name in ALIASES}
    for name, aliases in lists.items():
        if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
            raise TaskError(f"{record.where}: `{name}` must be a list of texts, there is {aliases!r:.60}.")
    graded = lists["normalized_aliases"] or lists["aliases"]
    if graded:
        value = answer.get("value")
        main = [value] if isinstance(value, str) and lists["aliases"] else []
        # Each once, in the data set's order.
        names = dict.fromkeys([*main, *(lists["aliases"] or graded)])
        return Question(record.text("question"), list(dict.fromkeys(graded)), list(names))
    raise TaskError(
        f"{record.where}: there are no `aliases`, so no answer could ever be right. The data set's own test split is such: "
        "its answers were never published, evaluate on validation."
    )


def _unique(questions: Iterable[Question], taken: set[str]) -> tuple[list[Question], int]:
    """Those whose key is new and not in `taken`, in order, and how many were left out."""
    found: dict[str, Question] = {}
    num_seen = 0
    for question in questions:
        num_seen += 1
        if question.key not in taken:
            found.setdefault(question.key, question)
    return list(found.values()), num_seen - len(found)
