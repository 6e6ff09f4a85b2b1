"""The last decisions and what became of them, for the page. Lives in an ingress replica."""

import math
from collections import deque
from itertools import islice
from typing import Any

from serve_app.recording.exchange import Exchange

SHOWN = 20
KEPT = 1_000  # of all keys together, however many there are; some 600 bytes each, with a text
TEXT_CHARACTERS = 160  # a text may be as large as a body


class LastDecisions:
    """keeps_text: whether how a text begins is kept too."""

    def __init__(self, *, keeps_text: bool) -> None:
        self._keeps_text = keeps_text
        self._rows: deque[tuple[str | None, dict[str, Any]]] = deque(maxlen=KEPT)

    def add(self, exchange: Exchange) -> None:
        """Does nothing where nothing was decided."""
        decision = exchange.decision
        if decision is None:
            return
        threshold = decision.threshold
        row: dict[str, Any] = {
            "time": exchange.began_at,
            "route": decision.route,
            "reason": decision.reason,
            "score": decision.score,
            # JSON has no infinity.
            "threshold": threshold if threshold is not None and math.isfinite(threshold) else None,
            "answered_by": exchange.answered_by,
            "fallback": exchange.fallback,
            "status": exchange.status,
            "cost_usd": exchange.cost_usd,
            "arm": decision.arm,
        }
        if self._keeps_text and exchange.text:
            row["text"] = exchange.text[:TEXT_CHARACTERS]
        self._rows.append((exchange.key_name, row))

    def of(self, key_name: str | None) -> list[dict[str, Any]]:
        """Those of a key, the last first. Where there are keys, every request has one: to None belongs none of theirs."""
        return list(islice((row for key, row in reversed(self._rows) if key == key_name), SHOWN))
