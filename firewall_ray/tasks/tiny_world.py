"""tiny_world: the quickstart's synthetic question-answer task, small enough to train language models for on a laptop.

Rows in: none, questions are drawn from a seed. Rows out: `Query`. Runs anywhere (standard library only).

Seven skills (addition, subtraction, multiplication, reversing letters, sorting digits, facts about invented
countries, their postal codes) come in three tiers:

* ``E`` easy: every shipped model was trained on it;
* ``M`` medium: mostly the strong model was trained on it;
* ``H`` hard: the long tail. No model ever saw it, so no model answers it; postal codes are always ``H``.

The wordings of different skills overlap ("How many now?", "Which coin do people use in ...", "Which code do people use
in ..."), and a country's tier is legible only through the ending of its name, with overlap: a router has to learn the
difference from text, it cannot look it up. About some medium facts the "sources" disagree (`RIVAL_SHARE`): the models were
trained on two answers there, which gives the strong model graded pass rates instead of 0 or 1.
"""

import functools
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from firewall_ray.errors import TaskError
from firewall_ray.tasks.base import Query, Task, make_query

# The shipped models were trained on this very world; with another seed all facts are new to them.
WORLD_SEED = 20
TIERS = ("E", "M", "H")
# The lesson to teach: a quarter of queries is easy, half rewards the strong model, a quarter is burnt money.
TIER_WEIGHTS = {"E": 0.27, "M": 0.48, "H": 0.25}
SKILL_WEIGHTS = {
    "addition": 0.18,
    "subtraction": 0.12,
    "multiplication": 0.10,
    "reverse": 0.10,
    "sort": 0.08,
    "fact": 0.36,
    "postal_code": 0.06,
}
# Share of the training sources that give the rival answer, for medium countries. It is what makes pass rates graded.
RIVAL_SHARE = {"capital": 0.0, "currency": 0.15, "language": 0.3, "animal": 0.45, "colour": 0.3}
NUM_COUNTRIES = {"E": 50, "M": 120, "H": 120}

# Weights: percent of a tier's countries, ending by ending. Only the last one is found in a single tier.
_NAME_ENDINGS = ("land", "ia", "or", "esk", "uth", "yx")
_ENDING_WEIGHTS = {"E": (45, 35, 15, 5, 0, 0), "M": (5, 25, 40, 25, 5, 0), "H": (0, 0, 5, 25, 35, 35)}
_ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gr", "h", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_PEOPLE = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ida", "Jon", "Kim", "Leo", "Mia", "Noa", "Otto", "Pia")
_THINGS = ("coins", "apples", "books", "cards", "shells", "stamps", "pens", "stones", "keys", "cups")
_CLOSED_ANSWERS = {
    "currency": ("crown", "florin", "tal", "mark", "peso", "dram", "lira", "rand", "sol", "yen", "krona", "zlot", "ducat", "groat"),
    "language": ("Aric", "Belan", "Corish", "Dovian", "Elvic", "Farran", "Galic", "Hestian", "Ivoran", "Jorvic", "Kestan", "Lumic"),
    "animal": ("wolf", "bear", "hawk", "lynx", "crane", "otter", "bison", "seal", "fox", "ibex", "heron", "stag", "boar", "owl"),
    "colour": ("red", "blue", "green", "gold", "white", "black", "violet", "orange", "silver", "grey"),
}  # fmt: skip
_FACT_WORDINGS = {
    "capital": ("What is the capital of {c}?", "Which city do people in {c} call their capital?", "What is the main city of {c}?"),
    "currency": ("What is the currency of {c}?", "Which coin do people use in {c}?", "What is the coin of {c} called?"),
    "language": ("What is the language of {c}?", "Which language do people use in {c}?", "What is spoken in {c}?"),
    "animal": ("What is the animal of {c}?", "Which animal do people see on the flag of {c}?", "What is the beast of {c}?"),
    "colour": ("What is the colour of {c}?", "Which colour do people use in the flag of {c}?", "What is the main colour of {c}?"),
}  # fmt: skip
_POSTAL_WORDINGS = ("What is the postal code of {c}?", "Which code do people use in {c}?", "What is the main code of {c}?")


@dataclass(frozen=True)
class Country:
    """An invented country. `facts` maps a relation to (the answer, the rival answer some sources give)."""

    name: str
    tier: str
    facts: Mapping[str, tuple[str, str]]
    postal_code: str


@dataclass(frozen=True)
class Item:
    """One question with its answer, before it becomes a `Query`. `rival` is the wrong answer that circulates, or None."""

    question: str
    answer: str
    skill: str
    tier: str
    rival: str | None = None
    rival_share: float = 0.0


@functools.cache
def countries() -> dict[str, tuple[Country, ...]]:
    """The world's countries by tier; the same in every process, since names and facts come from `WORLD_SEED` alone."""
    rng = random.Random(WORLD_SEED)
    taken: set[str] = set()

    def word(num_syllables: int, ending: str = "") -> str:
        while True:
            text = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(num_syllables))
            name = (text + (rng.choice(_ONSETS)[0] + ending if ending else "")).capitalize()
            if name not in taken:
                taken.add(name)
                return name

    def country(tier: str) -> Country:
        name = word(2, rng.choices(_NAME_ENDINGS, _ENDING_WEIGHTS[tier])[0])
        facts = {"capital": (word(2), word(2))}
        for relation, answers in _CLOSED_ANSWERS.items():
            answer, rival = rng.sample(answers, 2)
            facts[relation] = (answer, rival)
        return Country(name, tier, facts, str(rng.randint(10_000, 99_999)))

    return {tier: tuple(country(tier) for _ in range(NUM_COUNTRIES[tier])) for tier in TIERS}


def draw_item(rng: random.Random, skill: str | None = None, tier: str | None = None) -> Item:
    """Draw one question. `skill` and `tier` are drawn from `SKILL_WEIGHTS` and `TIER_WEIGHTS` where not given."""
    skill = skill or rng.choices(list(SKILL_WEIGHTS), list(SKILL_WEIGHTS.values()))[0]
    tier = tier or rng.choices(list(TIER_WEIGHTS), list(TIER_WEIGHTS.values()))[0]
    return _DRAW[skill](rng, tier)


def _addition(rng: random.Random, tier: str) -> Item:
    low, high = {"E": (0, 9), "M": (10, 99), "H": (100, 99_999)}[tier]
    a, b = rng.randint(low, high), rng.randint(low, high)
    who, what = rng.choice(_PEOPLE), rng.choice(_THINGS)
    question = rng.choice(
        (
            f"What is {a} plus {b}?",
            f"What do you get if you add {a} and {b}?",
            f"{who} has {a} {what} and finds {b} more. How many now?",
            f"{who} had {a} {what} and got {b} from a friend. How many now?",
        )
    )
    return Item(question, str(a + b), "addition", tier)


def _subtraction(rng: random.Random, tier: str) -> Item:
    low, high = {"E": (0, 9), "M": (10, 99), "H": (100, 99_999)}[tier]
    # The larger first: no answer is negative.
    b, a = sorted((rng.randint(low, high), rng.randint(low, high)))
    who, what = rng.choice(_PEOPLE), rng.choice(_THINGS)
    question = rng.choice(
        (
            f"What is {a} minus {b}?",
            f"What do you get if you take {b} from {a}?",
            f"{who} has {a} {what} and loses {b}. How many now?",
            f"{who} had {a} {what} and gave {b} to a friend. How many now?",
        )
    )
    return Item(question, str(a - b), "subtraction", tier)


def _multiplication(rng: random.Random, tier: str) -> Item:
    (low_a, high_a), (low_b, high_b) = {
        "E": ((0, 9), (0, 3)),
        "M": ((2, 12), (4, 12)),
        "H": ((13, 999), (13, 999)),
    }[tier]
    a, b = rng.randint(low_a, high_a), rng.randint(low_b, high_b)
    who, what = rng.choice(_PEOPLE), rng.choice(_THINGS)
    question = rng.choice(
        (
            f"What is {a} times {b}?",
            f"What do you get if you multiply {a} by {b}?",
            f"{who} has {a} boxes of {b} {what}. How many in all?",
            f"{who} buys {a} bags with {b} {what} in each. How many now?",
        )
    )
    return Item(question, str(a * b), "multiplication", tier)


def _reverse(rng: random.Random, tier: str) -> Item:
    length = rng.randint(*{"E": (2, 3), "M": (3, 6), "H": (9, 14)}[tier])
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length))
    spelled = " ".join(letters)
    question = rng.choice((f"What do you get if you reverse {spelled}?", f"What is {spelled} backwards?"))
    return Item(question, " ".join(reversed(letters)), "reverse", tier)


def _sort(rng: random.Random, tier: str) -> Item:
    length = rng.randint(*{"E": (2, 3), "M": (3, 6), "H": (9, 14)}[tier])
    digits = rng.choices("0123456789", k=length)
    question = rng.choice(("What do you get if you sort {d}?", "What is {d} in order?")).format(d=" ".join(digits))
    return Item(question, " ".join(sorted(digits)), "sort", tier)


def _fact(rng: random.Random, tier: str) -> Item:
    country = rng.choice(countries()[tier])
    relation = rng.choice(list(_FACT_WORDINGS))
    answer, rival = country.facts[relation]
    question = rng.choice(_FACT_WORDINGS[relation]).format(c=country.name)
    share = RIVAL_SHARE[relation] if tier == "M" else 0.0
    return Item(question, answer, "fact", tier, rival=rival if share else None, rival_share=share)


def _postal_code(rng: random.Random, tier: str) -> Item:
    """Postal codes belong to the long tail whichever country they are of, so the tier asked for only picks the country."""
    country = rng.choice(countries()[tier])
    return Item(rng.choice(_POSTAL_WORDINGS).format(c=country.name), country.postal_code, "postal_code", "H")


_DRAW = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "reverse": _reverse,
    "sort": _sort,
    "fact": _fact,
    "postal_code": _postal_code,
}


def draw_unique(seed: int, num_items: int) -> Iterator[Item]:
    """`num_items` questions, no text twice. Raises TaskError when the world has fewer different questions than that."""
    rng = random.Random(seed)
    seen: set[str] = set()
    for _ in range(num_items):
        for attempt in itertools.count():
            item = draw_item(rng)
            if item.question not in seen:
                break
            if attempt == 10_000:
                raise TaskError(
                    f"tiny_world ran out of new questions after {len(seen):,} of {num_items:,}. "
                    "Ask for fewer: queries.tasks.tiny_world.num_train, num_validation, num_test."
                )
        seen.add(item.question)
        yield item


class TinyWorld(Task):
    """The shipped task. `reference` is ``{"answer", "skill", "tier"}``; the answer is unique and graded by equality."""

    name = "tiny_world"
    stop = ()  # The shipped models end their answer with EOS.
    max_tokens = chat_max_tokens = 24  # The longest answer, 14 letters with spaces, has 14 tokens and an EOS.

    def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
        sizes = {split: options[f"num_{split}"] for split in ("train", "validation", "test")}
        # One stream cut in three, so no question is in two splits.
        items = draw_unique(options["seed"], sum(sizes.values()))
        for split, size in sizes.items():
            for item in itertools.islice(items, size):
                reference = {"answer": item.answer, "skill": item.skill, "tier": item.tier}
                yield make_query(self.name, split, item.question, json.dumps(reference))

    def is_right(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """Equality after trimming white space: "12" is right for 12, "12." and "12 coins" are wrong."""
        return answer.strip() == reference["answer"]
