"""The span of a request's scoring, on the router's replica that scored it.

One a request, though a call asks for several: each trace shows its own scoring under its request, where a span of the call could
only be linked from all of them. They begin and end together, as their texts are scored.
"""

from collections.abc import Sequence

from serve_app.routing.decision import Decision, DecisionRequest
from serve_app.tracing import Tracing


def trace_scoring(
    tracing: Tracing,
    requests: Sequence[DecisionRequest],
    decided: Sequence[list[Decision] | Exception],
    began_ns: int,
    ended_ns: int,
) -> None:
    """Of one call, once its decisions are made. Times in nanoseconds since 1970."""
    for request, result in zip(requests, decided, strict=True):
        if request.trace is None:
            continue
        step = tracing.begin("score", request.trace, "INTERNAL", began_ns)
        step.set({"firewall.num_requests": len(requests), "firewall.num_texts": len(request.texts)})
        if isinstance(result, Exception):
            step.failed(type(result).__name__)
        elif result:
            decisive = next((each for each in result if each.route == "strong"), result[0])
            step.set(
                {
                    "firewall.decided": decisive.route,
                    "firewall.score": decisive.score,
                    "firewall.threshold": decisive.threshold,
                    "firewall.strong_fraction": decisive.strong_fraction,
                    "firewall.router_version": decisive.router,
                }
            )
        step.end(ended_ns)
