"""How much a request asks of the models, and how much is under way: work is admitted, not requests. Runs on ingress replicas.

A request for 256 answers of 4,096 tokens keeps an engine as busy as a thousand chats. Its work is the tokens that it may come to:
its prompts times `n` times `max_tokens`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from firewall_ray.config.serving import ServingConfig
from serve_app.errors import RequestRefused, too_many

UNSAID_TOKENS = 1_024  # of an answer whose request says no max_tokens: a long chat answer; the model alone knows its own limit
ADVICE = "Try again, or ask for fewer answers or a smaller max_tokens."


def work_of(parsed: Mapping[str, Any]) -> tuple[int, int]:
    """Answers that a body asks for, and tokens that they may have together. What is no number is the model's to refuse.

    >>> work_of({"prompt": ["a", "b"], "n": 3, "max_tokens": 10})
    (6, 60)
    """
    prompt = parsed.get("prompt")
    # A list of numbers is one prompt, of token ids.
    num_prompts = len(prompt) if isinstance(prompt, list) and not all(isinstance(each, int) for each in prompt) else 1
    num_answers = num_prompts * max(_number(parsed.get("n")), _number(parsed.get("best_of")))
    said = [_number(parsed.get(name)) for name in ("max_tokens", "max_completion_tokens") if parsed.get(name) is not None]
    return num_answers, num_answers * max(said, default=UNSAID_TOKENS)


def _number(value: Any) -> int:
    """As vLLM's types read it, which take "3" and 3.0 for 3; at least 1."""
    try:
        return max(1, int(value)) if isinstance(value, int | float | str) else 1
    except (ValueError, OverflowError):  # no number, infinity, or thousands of digits
        return 1


class WorkInFlight:
    """Of one ingress replica, in tokens."""

    def __init__(self, serving: ServingConfig) -> None:
        self._serving = serving
        self._tokens = 0
        self._tokens_of: Counter[str] = Counter()

    def begin(self, parsed: Mapping[str, Any], key_name: str | None) -> int:
        """The tokens of a request that is let in, for `end`. Raises RequestRefused: too much for any time, or for now."""
        serving = self._serving
        num_answers, tokens = work_of(parsed)
        if num_answers > serving.max_answers:
            message = f"prompt, n: at most {serving.max_answers:,} answers a request, prompts times n (serving.max_answers)."
            raise RequestRefused(400, message, code="invalid_value", param="n")
        if tokens > serving.max_tokens:
            message = f"max_tokens: at most {serving.max_tokens:,} a request, over all of its answers (serving.max_tokens)."
            raise RequestRefused(400, message, code="invalid_value", param="max_tokens")
        if self._tokens + tokens > serving.max_tokens_in_flight:
            raise too_many(f"The server works on as much as it takes (serving.max_tokens_in_flight). {ADVICE}")
        if key_name is not None:
            if self._tokens_of[key_name] + tokens > serving.max_tokens_in_flight_per_key:
                raise too_many(
                    f"This API key has as much work in flight as one may (serving.max_tokens_in_flight_per_key). {ADVICE}"
                )
            self._tokens_of[key_name] += tokens
        self._tokens += tokens
        return tokens

    def end(self, tokens: int, key_name: str | None) -> None:
        """Of a request that is over. tokens: what `begin` said; 0 where it was not let in."""
        self._tokens -= tokens
        if key_name is not None:
            self._tokens_of[key_name] -= tokens
