"""What a client is told when no model answered. Runs on ingress replicas."""

import math
from collections.abc import Sequence

from serve_app.errors import RequestRefused
from serve_app.models.answers import ModelUnavailable


def no_answer(failed: Sequence[tuple[str, ModelUnavailable]], not_asked: str | None) -> RequestRefused:
    """failed: those that were asked, by their ids, at least one. not_asked: the one that the strong fraction kept from being."""
    tried = " nor ".join(f"{model_id} ({e.why})" for model_id, e in failed)
    whys = {e.why for _, e in failed}
    if failed[-1][1].why == "crashed":
        message = f"No answer from {tried}. Its engine crashed while it worked on this request, which may be why."
        return RequestRefused(502, message, code="model_crashed")
    if not_asked is not None:
        tried += f", and {not_asked} may not answer for it at this strong fraction"
    if whys == {"timeout"}:
        return RequestRefused(504, f"No answer in time from {tried}.", code="model_timeout")
    retry_after_s = math.ceil(min(e.retry_after_s for _, e in failed))
    return RequestRefused(503, f"No answer from {tried}. Try again.", code="model_unavailable", retry_after_s=retry_after_s)
