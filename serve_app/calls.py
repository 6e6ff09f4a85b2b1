"""Giving up a call to another deployment. Runs on ingress replicas."""

from contextlib import suppress
from typing import Any


def cancel(call: Any) -> None:
    """call: a `DeploymentResponse`, streamed or whole, in any state.

    Serve's own raises what befell the call where it never got a replica (in Ray 2.60, and only where a replica's handles have an
    event loop of their own): an ingress replica that was closing stopped in the middle of it, since the shared one was gone before.
    """
    with suppress(Exception):
        call.cancel()
