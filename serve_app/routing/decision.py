"""What was decided about a request, and how a client is told: the `x-firewall-*` headers and the answer of /v1/route.

Made on a router replica, or by the ingress when the router gave no answer.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from firewall_ray.config.serving import Route

# score: the router's score met the threshold. sticky: so it was when the conversation began. shadow: it was only recorded.
# requested: the client named the model. fraction: it asked for the strong fraction 0 or 1. The others take the fail-open route:
# router-timeout and router-failed say what the router did, no-text that there was nothing it could read.
Reason = Literal["score", "sticky", "shadow", "requested", "fraction", "router-timeout", "router-failed", "no-text"]

Arm = Literal["main", "canary"]

OTHER: dict[Route, Route] = {"weak": "strong", "strong": "weak"}


class DecisionRequest(NamedTuple):
    """What a router replica is asked about one request.

    strong_fraction: in [0, 1]; None: the default. are_questions: texts to be put into the prompt template; otherwise they are
    whole prompts. counts: as one request that a model will answer, which uses up budget. trace: of the request; None where nobody
    will see its spans.
    """

    texts: list[str]
    strong_fraction: float | None
    are_questions: bool
    counts: bool
    trace: dict[str, str] | None = None


class Spent(NamedTuple):
    """What a router replica is told afterwards of a request: another model answered it than was counted, or none was counted
    (decided: None).
    """

    strong_fraction: float | None
    answered: Route
    decided: Route | None
    arm: Arm = "main"


@dataclass(frozen=True)
class Decision:
    """route: the model of the pair that is to answer. score: p_weak in [0, 1]. threshold: scores below it go to the strong
    model, -inf and inf at the strong fractions 0 and 1. router: the version on its card. truncated: the router read only the
    beginning of the prompt. strong_fraction: the target in force, in [0, 1]. shadowed: the score's choice, where shadow mode
    put `route` into its place. query_id: of the prompt, as the offline jobs name one that has no id. arm: which of the two routers
    decided, where a canary runs. Everything but route, reason and arm is None where no score decided.
    """

    route: Route
    reason: Reason
    score: float | None = None
    threshold: float | None = None
    router: str | None = None
    truncated: bool | None = None
    strong_fraction: float | None = None
    shadowed: Route | None = None
    query_id: str | None = None
    arm: Arm = "main"

    @property
    def decided(self) -> Route | None:
        """What the score chose, now or when the conversation began, whoever answers; None where no score did. The header
        `x-firewall-decided` and the decision log's column `decided`.
        """
        return None if self.score is None else self.shadowed or self.route

    def sticky(self) -> "Decision":
        """The same, for a later turn of its conversation."""
        return replace(self, reason="sticky")

    def shadowed_by(self, route: Route) -> "Decision":
        """All traffic goes to `route`; what the router chose is kept beside it."""
        return replace(self, route=route, reason="shadow", shadowed=self.route)

    def headers(self) -> dict[str, str]:
        """The response headers. Numbers in full, so that a client can repeat the comparison.

        >>> Decision("strong", "score", 0.25, 0.5, "abc", False).headers()["x-firewall-score"]
        '0.25'
        """
        values = {
            "route": self.route,
            "reason": self.reason,
            "score": self.score,
            "threshold": self.threshold,
            "router": self.router,
            "truncated": None if self.truncated is None else str(self.truncated).lower(),
            "decided": self.decided,
            "arm": None if self.arm == "main" else self.arm,
        }
        return {f"x-firewall-{name}": str(value) for name, value in values.items() if value is not None}

    def as_json(self, model: str) -> dict[str, Any]:
        """One answer of /v1/route; `model` is the id of the model that the route means. JSON has no infinity: null instead."""
        finite = self.threshold is not None and math.isfinite(self.threshold)
        return {
            "route": self.route,
            "model": model,
            "score": self.score,
            "threshold": self.threshold if finite else None,
            "strong_fraction": self.strong_fraction,
            "reason": self.reason,
            "router": self.router,
            "truncated": self.truncated,
        }


def certain(strong_fraction: float | None) -> Decision | None:
    """What needs no router: at the strong fraction 0 nothing goes strong, at 1 everything, whatever its score."""
    if strong_fraction not in (0.0, 1.0):
        return None
    # As the router's own thresholds at these fractions.
    route: Route
    route, threshold = ("strong", math.inf) if strong_fraction else ("weak", -math.inf)
    return Decision(route, "fraction", threshold=threshold, strong_fraction=strong_fraction)
