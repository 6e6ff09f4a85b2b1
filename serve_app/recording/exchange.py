"""One routed request from its decision to its last byte: what telemetry, the decision log and the page's counters read.

Made and filled in on ingress replicas, in the event loop; observers in other threads see it when it is over.
"""

import time
from dataclasses import dataclass, field
from typing import Literal, Protocol

from firewall_ray.config.serving import Route
from serve_app.models.answers import Endpoint, Unavailable, Usage
from serve_app.routing.decision import Decision
from serve_app.shared.minutes import Grant

# What clients ask; the last two are chats in other words (serve_app/apis).
Asked = Literal["chat", "completions", "responses", "messages"]


@dataclass
class Exchange:
    """Filled in as the request goes. Times in seconds; None where it never came so far.

    text: what the router read, of several prompts the one that decided. Personal data: only the decision log may keep it, and
    the last decisions its beginning, and only when told to.
    answered_by: the model that answered; not decision.route after a fallback, whose cause is `fallback`.
    work: tokens that it may come to, for which it was let in (work.py). grant: of its key's limits a minute, if it has any.
    num_streamed: tokens of a stream that were sent so far. usage: as the model's server counted it; where a stream's client left or
    it broke, an estimate with num_streamed in it (`serve_app/money/pricing.py`).
    first_byte_s: from arrival to the model's first byte. model_s: of that, in the model's replica.
    request_id: the client's, or Ray Serve's.
    num_bytes: of the request. cost_usd, saved_usd: see `serve_app/money/pricing.py`; saved_usd where a score decided, in force.
    """

    endpoint: Asked
    key_name: str | None = None
    request_id: str | None = None
    streams: bool = False
    work: int = 0
    text: str | None = None
    decision: Decision | None = None
    answered_by: Route | None = None
    fallback: Unavailable | None = None
    status: int = 500
    router_s: float | None = None
    first_byte_s: float | None = None
    model_s: float | None = None
    total_s: float | None = None
    usage: Usage | None = None
    client_left: bool = False
    num_bytes: int = 0
    cost_usd: float | None = None
    saved_usd: float | None = None
    grant: Grant | None = None
    num_streamed: int = 0
    began_at: float = field(default_factory=time.time)  # wall clock, for the log
    _began: float = field(default_factory=time.perf_counter)  # a wall clock may be set back

    def elapsed_s(self) -> float:
        """Since the request arrived."""
        return time.perf_counter() - self._began

    @property
    def model_endpoint(self) -> Endpoint:
        """Where the model is asked for it."""
        return "completions" if self.endpoint == "completions" else "chat"

    @property
    def decided(self) -> Route | None:
        """As the decision's: the model that a score chose; None also where there was no decision."""
        return None if self.decision is None else self.decision.decided

    @property
    def router_latency_s(self) -> float | None:
        """From arrival to the decision; None where the router was not asked."""
        asked = self.decision is not None and self.decision.reason in ("score", "shadow", "router-timeout", "router-failed")
        return self.router_s if asked else None

    @property
    def queue_s(self) -> float | None:
        """The way to the model's replica and waiting there. None where it is not known: remote models, and after a fallback."""
        if self.first_byte_s is None or self.router_s is None or self.model_s is None or self.fallback is not None:
            return None
        # model_s is a duration by another machine's clock: never compared with ours, but it may run a little faster.
        return max(0.0, self.first_byte_s - self.router_s - self.model_s)

    @property
    def asked(self) -> Route | None:
        """The model that answered, else the one that was to; None before the decision."""
        return self.answered_by or (None if self.decision is None else self.decision.route)

    @property
    def model_seconds(self) -> float:
        """From the decision to the last byte, or to now."""
        return (self.elapsed_s() if self.total_s is None else self.total_s) - (self.router_s or 0.0)

    @property
    def may_have_used_tokens(self) -> bool:
        """Whether a model may have worked on it, where nobody said what it used."""
        return self.asked is not None and (self.status in (200, 502) or self.client_left)

    @property
    def is_as_scored(self) -> bool:
        """Whether a score decided who answers, and that came to its end."""
        in_force = self.decision is not None and self.decision.reason in ("score", "sticky")  # not only recorded, as in shadow mode
        return in_force and self.answered_by is not None and self.status == 200

    @property
    def avoided_strong_call(self) -> bool:
        """Whether the weak model answered, to the end, because a score said that it can."""
        return self.is_as_scored and self.decided == "weak" and self.answered_by == "weak"


class Observer(Protocol):
    """Is told of every exchange once, when it is over. Must not block, and must not raise."""

    def record(self, exchange: Exchange) -> None: ...
