"""tiny_world in three parts, each a task of its own: the miniature of the paper's three benchmarks.

`tiny_facts` stands for TriviaQA (knowledge), `tiny_sums` for GSM8K (arithmetic) and `tiny_letters` for HumanEval: the other
two train the routers, it is only evaluated on (num_train: 0, num_validation: 0). Questions, tiers and grading are tiny_world's.
"""

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from firewall_ray.tasks.base import Query, make_query
from firewall_ray.tasks.tiny_world import TinyWorld, draw_unique

PARTS = {
    "tiny_facts": frozenset({"fact", "postal_code"}),
    "tiny_sums": frozenset({"addition", "subtraction", "multiplication"}),
    "tiny_letters": frozenset({"reverse", "sort"}),
}


class TinyPart(TinyWorld):
    """The questions of tiny_world that take one of `skills`, in the order in which tiny_world draws them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.skills = PARTS[name]

    def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
        # Without a limit: nobody knows how many questions must be drawn until there are enough of these skills.
        items = (item for item in draw_unique(options["seed"], sys.maxsize) if item.skill in self.skills)
        for split in ("train", "validation", "test"):
            for item in itertools.islice(items, options[f"num_{split}"]):
                reference = {"answer": item.answer, "skill": item.skill, "tier": item.tier}
                yield make_query(self.name, split, item.question, json.dumps(reference))
