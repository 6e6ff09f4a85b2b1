"""How much the router reads in a given time, measured as it goes. Runs on router replicas, and on the ingress that asks them."""

OVERHEAD = 100  # characters that take as long as what every text costs, however short
LONGEST = 16_384  # of one text; of longer ones the tokenizer sees no more (`data.READ_PER_TOKEN` of 512 tokens)
COSTS_PER_S = 100_000.0  # to begin with: of an encoder of 22 million parameters on one core
FORGETS = 0.3  # weight of the newest measurement: a few slices after a neighbour came or left, the pace is the new one


def cost(text: str) -> int:
    """What it takes to score a text, in characters.

    >>> cost("Why?")
    104
    """
    return min(len(text), LONGEST) + OVERHEAD


class Pace:
    """begins_at: costs a second, before anything was measured."""

    def __init__(self, begins_at: float = COSTS_PER_S) -> None:
        # Seconds, not costs, are averaged: what is slow now counts at once, what is fast again after a while.
        self._s_a_cost = 1 / begins_at

    def within(self, seconds: float) -> float:
        """The cost that takes so long."""
        return seconds / self._s_a_cost

    def measured(self, total_cost: float, seconds: float) -> None:
        """So much was scored in so long."""
        # A clock may show no time at all for little work.
        self._s_a_cost += FORGETS * (max(seconds, 1e-4) / total_cost - self._s_a_cost)
