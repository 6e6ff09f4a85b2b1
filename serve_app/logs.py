"""Warnings that reach the log when they are given. Called on every replica at its start.

`RAY_SERVE_THROUGHPUT_OPTIMIZED` has Serve collect a thousand lines before it writes them, or until one is an error: an outage at
night would be read the next morning.
"""

import logging
from logging.handlers import MemoryHandler


def warnings_at_once() -> None:
    """From now on a warning takes with it what was collected. Access logs, which cost the time, are collected as before."""
    for handler in logging.getLogger("ray.serve").handlers:
        if isinstance(handler, MemoryHandler):
            handler.flushLevel = min(handler.flushLevel, logging.WARNING)
