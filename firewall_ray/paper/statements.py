"""The paper's sentences that a run can test, each as one side of its tables against the other: the best of `ahead` is above the
best of `behind`. What it says without a number to test ("comparable", "consistent") is left out; docs/reproduction.md lists it.
"""

from typing import NamedTuple

from firewall_ray.paper.published import LINEAR, OURS

Side = tuple[tuple[str, str], ...]  # (table, method) of the paper; the best of them counts
TRIVIAQA, GSM8K, HUMANEVAL = "TriviaQA", "GSM8K", "HumanEval"
ALL = (TRIVIAQA, GSM8K, HUMANEVAL)
HARD, SOFT = OURS
OTHERS = (LINEAR, "Hybrid LLM", "RouteLLM (MF)", "Margin Sampling")


class Statement(NamedTuple):
    """text: what is claimed, in our words. section: where. metric: one of the paper's columns."""

    text: str
    section: str
    datasets: tuple[str, ...]
    ahead: Side
    behind: Side
    metric: str = "APGR"


def _of(table: str, *methods: str) -> Side:
    return tuple((table, method) for method in methods)


def _main(table: str, section: str) -> list[Statement]:
    """What is said of both of the tables with baselines."""
    others = _of(table, *OTHERS)
    return [
        Statement("The better of ours is ahead of every other method", section, ALL, _of(table, *OURS), others),
        Statement("Soft Blocking is ahead of every method", section, (TRIVIAQA,), _of(table, SOFT), (*others, (table, HARD))),
        Statement("Hard Blocking too is ahead of every other method", section, (TRIVIAQA,), _of(table, HARD), others),
        Statement("Hybrid LLM is worse than random", section, (TRIVIAQA,), _of(table, LINEAR), _of(table, "Hybrid LLM")),
    ]


STATEMENTS: tuple[Statement, ...] = (
    *_main("table_1", "4.2.1, Table 1"),
    *(
        Statement(f"{method} is better than random", "4.2.1, Table 1", (TRIVIAQA,), _of("table_1", method), _of("table_1", LINEAR))
        for method in ("RouteLLM (MF)", "Margin Sampling")
    ),
    *(
        Statement(
            f"{method} is worse than random", "4.2.1, Table 1", (GSM8K, HUMANEVAL), _of("table_1", LINEAR), _of("table_1", method)
        )
        for method in ("RouteLLM (MF)", "Margin Sampling")
    ),
    *_main("table_2", "4.2.2, Table 2"),
    *(
        Statement(
            f"{method} needs no retraining: better than random with another weak model",
            "4.2.2, Table 2",
            ALL,
            _of("table_2", method),
            _of("table_2", LINEAR),
        )
        for method in OURS
    ),
    *(
        Statement(
            f"{method} gains with the larger weak model",
            "4.2.2, Table 2",
            (TRIVIAQA,),
            _of("table_2", method),
            _of("table_1", method),
        )
        for method in ("RouteLLM (MF)", "Margin Sampling")
    ),
    *(
        Statement(
            f"DeBERTa is ahead of the causal backbone, {design}",
            "4.3.1, Table 4",
            (TRIVIAQA, GSM8K),
            _of("table_4", f"{design} (Deberta)"),
            _of("table_4", f"{design} (Causal)"),
        )
        for design in ("Hard Blocking", "Soft Blocking")
    ),
    *(
        Statement(
            f"The causal backbone is ahead of DeBERTa out of domain, {design}",
            "4.3.1, Table 4",
            (HUMANEVAL,),
            _of("table_4", f"{design} (Causal)"),
            _of("table_4", f"{design} (Deberta)"),
        )
        for design in ("Hard Blocking", "Soft Blocking")
    ),
    Statement(
        "The weak model's pass rate as a label is better than random",
        "4.3.2, Table 3",
        ALL,
        _of("table_3", "Weak Model Pass Rate"),
        _of("table_1", LINEAR),
    ),
    Statement(
        "Hard labels are better than the weak model's pass rate",
        "4.3.2, Table 3",
        ALL,
        _of("table_3", "Hard Label"),
        _of("table_3", "Weak Model Pass Rate"),
    ),
    *(
        Statement(
            f"{design} is ahead of the strong model's pass rate",
            "4.3.2, Table 3",
            ALL,
            _of("table_3", design),
            _of("table_3", "Strong Model Pass Rate"),
        )
        for design in ("Hard Block", "Soft Block")
    ),
    Statement(
        "The strong model's pass rate is ahead of both where few queries go to the weak model",
        "4.3.2, Table 3",
        ALL,
        _of("table_3", "Strong Model Pass Rate"),
        _of("table_3", "Hard Block", "Soft Block"),
        metric="80%",
    ),
)
