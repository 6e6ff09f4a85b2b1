"""When the strong model answers for the weak one: whether it may, and what the budget has to know. Lives in an ingress replica.

The strong fraction is a promise about money, so it holds while a model is down, too. With `budget_control` the router's budget says
whether there is room, over all ingress replicas; `serving.stand_in_share` is a cap of each of them, with it or without.
"""

import logging
from collections import deque

from firewall_ray.config.serving import Route, ServingConfig
from serve_app.routing.client import RouterClient
from serve_app.routing.decision import Decision

WINDOW = 1_000

logger = logging.getLogger("ray.serve")


class StandIns:
    """Of one ingress replica."""

    def __init__(self, router: RouterClient, serving: ServingConfig) -> None:
        self._router = router
        self._serving = serving
        self._recent: deque[bool] = deque([False] * WINDOW, WINDOW)
        self._num_stood_in = 0

    async def may(self, decision: Decision) -> bool:
        """Whether the strong model may answer what was to be the weak one's. Where it may, it is counted."""
        share = self._serving.stand_in_share
        if decision.strong_fraction == 0 or (share < 1 and self._num_stood_in + 1 > share * WINDOW):
            return False
        if not self._has_budget(decision):
            return True
        try:
            return await self._router.may_stand_in(decision, decision.strong_fraction, self._serving.router_timeout_s)
        except Exception as e:  # nobody knows what is spent: then nothing more
            logger.warning("The router did not say whether the strong model may answer (%s).", type(e).__name__)
            return False

    def did_not(self, decision: Decision) -> None:
        """It gave no answer either, so nothing was spent."""
        if self._has_budget(decision) and decision.reason == "score":
            self._router.spent(decision.strong_fraction, "weak", "strong", decision.arm)

    def settle(self, decision: Decision, answered: Route, *, stood_in: bool) -> None:
        """A request is being answered: let the budget know of what it has not counted by itself."""
        if decision.reason == "requested":
            return
        self._num_stood_in += stood_in - self._recent[0]
        self._recent.append(stood_in)
        if stood_in or not self._has_budget(decision):  # the router counted it when it allowed it
            return
        if decision.reason == "score" and answered != decision.route:
            self._router.spent(decision.strong_fraction, answered, decision.route, decision.arm)
        elif decision.reason in ("router-timeout", "router-failed", "no-text") and answered == "strong":
            self._router.spent(decision.strong_fraction, answered, None, decision.arm)

    def _has_budget(self, decision: Decision) -> bool:
        """In shadow mode decisions are only recorded, and so is what they would have spent."""
        return self._serving.budget_control is not None and decision.reason != "shadow"
