"""One routed request from its decision to its last byte: what telemetry, the decision log and the page's counters read."""

import time
from dataclasses import dataclass, field
from typing import Protocol

from firewall_ray.serving_config import Route
from serve_app.answers import Endpoint, Unavailable, Usage
from serve_app.decision import Decision


@dataclass
class Exchange:
    """Filled in as the request goes. Times in seconds; None where it never came so far.

    text: what the router read (personal data: only the decision log may keep it, and only when told to).
    answered_by: the model that answered; not decision.route after a fallback, whose cause is `fallback`.
    first_byte_s: from arrival to the model's first byte. model_s: of that, in the model's replica.
    """

    endpoint: Endpoint
    key_name: str | None = None
    streams: bool = False
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
    began_at: float = field(default_factory=time.time)  # wall clock, for the log
    _began: float = field(default_factory=time.perf_counter)

    def elapsed_s(self) -> float:
        """Since the request arrived."""
        return time.perf_counter() - self._began


class Observer(Protocol):
    """Is told of every exchange once, when it is over. Must not block, and must not raise."""

    def record(self, exchange: Exchange) -> None: ...
