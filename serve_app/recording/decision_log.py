"""Decisions on disk: a row of `firewall_ray.schemas.DECISIONS` a request that a score decided, under ROOT/decisions/; and one of
`OTHER_REQUESTS` a request that was decided otherwise, under ROOT/other_requests/.

Each ingress replica writes files of its own from a thread of its own: requests never wait for storage. Where storage fails,
rows wait in memory and are written when it is back; when there is no more room they are dropped and counted.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa

from firewall_ray.config.serving import DecisionLogConfig
from firewall_ray.errors import StorageFailure
from firewall_ray.store.dataset import Dataset
from serve_app.recording.exchange import Exchange

MAX_WAITING_FILES = 4  # in rows: as many as so many files hold
MAX_WAITING_CHARACTERS = 64 * 2**20  # of text
RETRY_S = 5.0
CLOSE_S = 45.0  # of what an ingress replica may take to close (app.py)
LAST_TRY_S = 35.0  # of closing: a write that then hangs, and what it says of the rows that are lost, have the rest

logger = logging.getLogger("ray.serve")
Row = tuple[Any, ...]


class DecisionLog:
    """An observer. dataset: of what a score decided, or of the rest.

    logged: is told how many rows were written or dropped; called from the log's thread too.
    """

    def __init__(
        self, dataset: Dataset, config: DecisionLogConfig, logged: Callable[[Literal["written", "dropped"], int], None]
    ) -> None:
        self._dataset = dataset
        self._columns = dataset.schema.names
        self._of_scores = "p_weak" in self._columns
        self._config = config
        self._logged = logged
        self._writer_id = uuid4().hex[:12]  # replicas write into the same folder
        self._num_files = 0
        self._rows: list[Row] = []
        self._num_characters = 0
        self._is_closed = False
        self._has_to_hurry = False  # one try more at once
        self._close_by_s = math.inf  # monotonic; when it is too late for another try
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def record(self, exchange: Exchange) -> None:
        """As the protocol says."""
        if exchange.decision is None or (exchange.decided is not None) != self._of_scores:
            return
        row = row_of(exchange, self._columns, keep_text=self._config.keep_text)
        num_characters = len(row[-1] or "")  # the text, the only part whose size is the client's choice
        with self._changed:
            is_full = (
                len(self._rows) >= MAX_WAITING_FILES * self._config.rows_per_file
                or self._num_characters + num_characters > MAX_WAITING_CHARACTERS
            )
            if not is_full:
                self._rows.append(row)
                self._num_characters += num_characters
                if self._file_is_full():
                    self._changed.notify()
        if is_full:
            self._logged("dropped", 1)

    def close(self) -> None:
        """Write what is left, again and again while storage fails; blocks for CLOSE_S at most. Rows that come later are lost."""
        with self._changed:
            self._is_closed = self._has_to_hurry = True
            self._close_by_s = time.monotonic() + LAST_TRY_S
            self._changed.notify()
        self._thread.join(CLOSE_S)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        is_failing = False
        while True:
            with self._changed:
                if is_failing:
                    self._changed.wait_for(lambda: self._has_to_hurry, RETRY_S)
                    self._has_to_hurry = False
                else:
                    self._changed.wait_for(lambda: self._is_closed or self._file_is_full(), self._config.seconds_per_file)
                rows = self._rows[: self._config.rows_per_file]
                is_closing = self._is_closed
            if rows:
                # They stay in memory until they are on disk, so a failure loses none.
                is_failing = not self._write(rows, is_failing)
            if is_closing and (not self._rows or (is_failing and time.monotonic() > self._close_by_s)):
                self._dropped(len(self._rows))
                return

    def _write(self, rows: list[Row], was_failing: bool) -> bool:
        """Whether these rows, the first ones waiting, need not wait any longer."""
        outcome: Literal["written", "dropped"] = "written"
        try:
            # Outside of the lock: requests that are over meanwhile must not wait for storage.
            self._dataset.append(table_of(rows, self._dataset.schema), self._next_name())
        except StorageFailure as e:
            if not was_failing:
                logger.warning("The decision log cannot be written, rows wait in memory: %s", e)
            return False
        except Exception as e:  # of these rows, not of the storage: they would fail again
            logger.warning("%d rows of the decision log are dropped: %s.", len(rows), type(e).__name__)
            outcome = "dropped"
        with self._changed:
            del self._rows[: len(rows)]
            self._num_characters -= sum(len(row[-1] or "") for row in rows)
        self._logged(outcome, len(rows))
        return True

    def _file_is_full(self) -> bool:
        return len(self._rows) >= self._config.rows_per_file or self._num_characters > MAX_WAITING_CHARACTERS // 2

    def _dropped(self, num_rows: int) -> None:
        if num_rows:
            logger.warning("%d rows of the decision log are lost at shutdown: storage fails.", num_rows)
            self._logged("dropped", num_rows)

    def _next_name(self) -> str:
        """A folder a day, so that neither people nor programs need to list everything."""
        self._num_files += 1
        now = datetime.now(UTC)
        return f"date={now:%Y-%m-%d}/{now:%H%M%S}-{self._writer_id}-{self._num_files:06d}.parquet"


def row_of(exchange: Exchange, columns: Sequence[str], *, keep_text: bool) -> Row:
    """The values of these columns of `DECISIONS` or `OTHER_REQUESTS`. The exchange is one that was decided."""
    decision, usage = exchange.decision, exchange.usage
    assert decision is not None
    text = exchange.text if keep_text else None
    values = {
        "query_id": decision.query_id,
        "p_weak": decision.score,
        "time": int(exchange.began_at * 1e6),
        "router": decision.router,
        "threshold": decision.threshold,
        "strong_fraction": decision.strong_fraction,
        "route": decision.route,
        "decided": exchange.decided,
        "answered_by": exchange.answered_by,
        "reason": decision.reason,
        "fallback": exchange.fallback,
        "endpoint": exchange.endpoint,
        "streams": exchange.streams,
        "status": exchange.status,
        "prompt_tokens": usage and usage.prompt_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "router_s": exchange.router_s,
        "first_byte_s": exchange.first_byte_s,
        "total_s": exchange.total_s,
        "key_name": exchange.key_name,
        "cost_usd": exchange.cost_usd,
        "arm": decision.arm,
        "request_id": exchange.request_id,
        # JSON may hold half a surrogate pair, UTF-8 may not.
        "text": text and text.encode("utf-8", "replace").decode(),
    }
    return tuple(values[name] for name in columns)


def table_of(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Rows of `row_of` as a table. Raises pyarrow.ArrowException or OverflowError on what the columns cannot hold."""
    columns = zip(*rows, strict=True)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
