"""What a chat's or a completion's span says: OpenTelemetry's `gen_ai.*` attributes, and our decision under `firewall.*`. On ingress
replicas.

Never what was asked or answered: names of the config, numbers, and words of closed sets. Stop strings are text too.
"""

from collections.abc import Mapping
from typing import Any

from firewall_ray.config.serving import Route
from serve_app.models.answers import OPERATIONS, Endpoint, usage_attributes
from serve_app.recording.exchange import Exchange
from serve_app.routing.decision import OTHER
from serve_app.tracing import CURRENT

MAX_NAME = 100  # of a model: `firewall-0.3` may have as many digits as a client likes
MAX_INT = 2**63  # as the protocol has it
# What a request asks for, by OpenAI's names and by OpenTelemetry's; of two names for one thing the later wins, as in vLLM.
NUMBERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "n": "gen_ai.request.choice.count",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}


def span_asks(endpoint: Endpoint, parsed: Mapping[str, Any], *, streams: bool) -> None:
    """To be called once it is known that `model` is one that there is. What has a wrong type, the model refuses."""
    step = CURRENT.get()
    if step is None or not step.is_recorded:
        return
    numbers = {name: parsed[said] for said, name in NUMBERS.items() if _is_number(parsed.get(said))}
    step.set(
        {
            "gen_ai.operation.name": OPERATIONS[endpoint],
            "gen_ai.provider.name": "firewall-ray",
            "gen_ai.request.model": parsed["model"][:MAX_NAME],
            "gen_ai.request.stream": streams,
            **numbers,
        }
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and -MAX_INT <= value < MAX_INT)


class Spans:
    """An observer. ids: what clients call the models."""

    def __init__(self, ids: Mapping[Route, str]) -> None:
        self._ids = ids

    def record(self, exchange: Exchange) -> None:
        """As the protocol says; within the request, whose span it fills in."""
        step = CURRENT.get()
        if step is None or not step.is_recorded:
            return
        step.set(self._attributes(exchange))
        if exchange.status >= 500:  # of a stream that broke, too, whose HTTP status was another
            step.failed(str(exchange.status))

    def _attributes(self, exchange: Exchange) -> dict[str, Any]:
        decision = exchange.decision
        said: dict[str, Any] = {
            "firewall.answered_by": exchange.answered_by,
            "firewall.fallback": exchange.fallback,
            "firewall.client_left": exchange.client_left or None,
            "firewall.cost_usd": exchange.cost_usd,
            "gen_ai.response.model": exchange.answered_by and self._ids[exchange.answered_by],
            "gen_ai.response.time_to_first_chunk": exchange.first_byte_s if exchange.streams else None,
            **usage_attributes(exchange.usage),
        }
        if decision is not None:
            said |= {
                "firewall.route": decision.route,
                "firewall.model": self._ids[decision.route],
                "firewall.alternative_model": self._ids[OTHER[decision.route]],
                "firewall.decided": decision.decided,
                "firewall.reason": decision.reason,
                "firewall.score": decision.score,
                "firewall.threshold": decision.threshold,
                "firewall.strong_fraction": decision.strong_fraction,
                "firewall.router_version": decision.router,
                "firewall.truncated": decision.truncated,
            }
        return said
