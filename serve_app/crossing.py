"""What may cross from a replica to another process when something fails: this application's own exceptions, and no others.

An exception is pickled by its class. One of vLLM's or torch's makes the process that unpickles it, an ingress' event loop, import
them: seconds in which nobody is answered, half a GiB that stays, and a logging set-up that closes Serve's own handlers.
Used on model and on router replicas.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class ReplicaFailed(Exception):
    """In place of another library's exception, of which it has the class's name. Not its words, which may repeat a prompt."""


@contextmanager
def only_plain_errors() -> Iterator[None]:
    """Whatever is raised inside leaves as one of this application's exceptions. The replica's log has the original.

    >>> with only_plain_errors():
    ...     raise ValueError("of a prompt")
    Traceback (most recent call last):
    serve_app.crossing.ReplicaFailed: ValueError
    """
    try:
        yield
    except Exception as e:  # a cancellation is none, and passes
        if is_plain(e):
            raise
        # Its cause is printed where this is logged; it isn't pickled.
        raise ReplicaFailed(type(e).__name__) from e


def is_plain(error: Exception) -> bool:
    """Whether every process of the application knows the class. Not even ValueError: what it holds may be another library's."""
    return type(error).__module__.startswith("serve_app.")
