"""The router that decides, and a canary: another one, or another strong fraction, for a share of the traffic. On router replicas.

Who meets the canary is said by a hash of what the router reads, so a question always does or never does. Of a conversation that
is kept (`serving.sticky`) the router reads the first turn, so all of a conversation is decided by one of the two.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from pydantic import Field

from firewall_ray.config.base import Name, Strict
from firewall_ray.config.serving import BudgetControlConfig
from firewall_ray.router.predict import RouterPredictor
from serve_app.routing.budget import BudgetController
from serve_app.routing.decision import Arm, DecisionRequest
from serve_app.routing.drift import ScoreDrift


class CanaryConfig(Strict):
    """What decides for `share` of the traffic."""

    share: float = Field(gt=0, lt=1, description="Of the questions, or of the conversations where they are kept.")
    router: Name | None = Field(None, description="A folder of routers/. None: the same router.")
    version: str | None = Field(None, description="The version on its card.")
    strong_fraction: float | None = Field(None, ge=0, le=1, description="For the model `firewall`. None: the same.")


class RouterUserConfig(Strict):
    """What may change while the application runs: `user_config` of the deployment `Router` in Serve's config file."""

    router: Name = Field(description="A folder of routers/.")
    version: str | None = Field(None, description="The version on its card, to load a router again that was trained anew.")
    strong_fraction: float = Field(ge=0, le=1, description="For the model `firewall`.")
    canary: CanaryConfig | None = Field(None, description="Another router or fraction for a share. None: none.")


class LoadedRouter:
    """A router and what is known of its traffic, which begins anew with a router: its scores are of another scale."""

    def __init__(self, predictor: RouterPredictor, budget_control: BudgetControlConfig | None, strong_fraction: float) -> None:
        self.predictor = predictor
        self.drift = ScoreDrift(predictor.card.quantiles)
        self.budgets: BudgetController | None = None
        if budget_control is not None:
            self.budgets = BudgetController(predictor.card.quantiles, budget_control.window, default=strong_fraction)


@dataclass(frozen=True)
class Deciding:
    """strong_fraction: in [0, 1], where the client asks for none."""

    router: LoadedRouter
    strong_fraction: float
    arm: Arm

    def target(self, strong_fraction: float | None) -> float:
        return self.strong_fraction if strong_fraction is None else strong_fraction


class Arms(NamedTuple):
    """What decides now. share: of the canary, in [0, 1)."""

    main: Deciding
    canary: Deciding | None = None
    share: float = 0.0

    def of(self, request: DecisionRequest) -> Deciding:
        """Who decides about it; of several texts the first one says."""
        if self.canary is None or position(request.texts[0]) >= self.share:
            return self.main
        return self.canary

    def named(self, arm: Arm) -> Deciding:
        """As it is now: a canary that is gone was promoted or rolled back, and the main one answers for it."""
        return self.canary if arm == "canary" and self.canary is not None else self.main


def position(text: str) -> float:
    """Where a text lies between 0 and 1, as if thrown there; always at the same place."""
    # Not the hash that breaks ties: among tied scores a canary would meet one kind only. JSON may hold half a surrogate pair.
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"canary").digest()
    return int.from_bytes(digest, "big") / 2**64
