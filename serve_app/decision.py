"""What was decided about a request, and how a client is told: the `x-firewall-*` headers and the answer of /v1/route.

Made on a router replica, or by the ingress when the router gave no answer.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

Route = Literal["weak", "strong"]

# score: the router's score met the threshold. requested: the client named the model. The others are the fail-open route:
# router-timeout and router-failed say what the router did, no-text that there was nothing it could read.
Reason = Literal["score", "requested", "router-timeout", "router-failed", "no-text"]


@dataclass(frozen=True)
class Decision:
    """route: the model of the pair that answers. score: p_weak in [0, 1]. threshold: scores below it go to the strong model,
    -inf and inf at the strong fractions 0 and 1. router: the version on its card. truncated: the router read only the
    beginning of the prompt. Everything but route and reason is None where no score decided.
    """

    route: Route
    reason: Reason
    score: float | None = None
    threshold: float | None = None
    router: str | None = None
    truncated: bool | None = None

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
            "reason": self.reason,
            "router": self.router,
            "truncated": self.truncated,
        }
