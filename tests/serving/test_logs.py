"""Serve's log as it is under RAY_SERVE_THROUGHPUT_OPTIMIZED: a thousand lines collected before the first is written."""

import logging
from logging.handlers import MemoryHandler

import pytest

from serve_app.logs import warnings_at_once


class Written(logging.Handler):
    """What came to the file."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_warning_is_written_at_once_and_access_logs_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written()
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "handlers", [MemoryHandler(1_000, flushLevel=logging.ERROR, target=written)])
    monkeypatch.setattr(logger, "level", logging.INFO)
    warnings_at_once()
    logger.info("POST /v1/chat/completions 200")
    assert written.lines == []
    logger.warning("models.strong is out.")
    assert written.lines == ["POST /v1/chat/completions 200", "models.strong is out."]
