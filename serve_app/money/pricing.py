"""What each request cost, and what it saved. Runs on ingress replicas, in the event loop.

An answer costs its tokens, or its part of the GPUs' time, at the price of the model that gave it. Of one that was not seen to its
end (the client left, the stream broke) nobody said what it used: that is estimated from the request's size and from how long the
model worked on it, at the rates of the model's last answers. Of a stream, the tokens that were sent are counted.
"""

from collections.abc import Mapping
from dataclasses import replace

from firewall_ray.config.money import PriceConfig
from firewall_ray.config.serving import Route
from serve_app.models.answers import Usage
from serve_app.money.caps import SpendCaps
from serve_app.recording.exchange import Exchange

HEADER = "x-firewall-cost-usd"
MEMORY_S = 1_000.0  # of answering; then what is known weighs half


class Rates:
    """What a model's answers use: per byte of a request, and per second of an answer. Begins with one guess, worth a second."""

    def __init__(self) -> None:
        self._num_bytes, self._prompt_tokens, self._cached_tokens = 4.0, 1.0, 0.0
        self._seconds, self._completion_tokens, self._gpu_s = 1.0, 30.0, 1.0

    def learn(self, num_bytes: int, seconds: float, usage: Usage) -> None:
        """Of an answer that was seen to its end."""
        if self._seconds > MEMORY_S:
            self._num_bytes, self._prompt_tokens, self._cached_tokens = (
                each / 2 for each in (self._num_bytes, self._prompt_tokens, self._cached_tokens)
            )
            self._seconds, self._completion_tokens, self._gpu_s = (
                each / 2 for each in (self._seconds, self._completion_tokens, self._gpu_s)
            )
        self._num_bytes += num_bytes
        self._prompt_tokens += usage.prompt_tokens
        self._cached_tokens += usage.cached_tokens
        self._seconds += seconds
        self._completion_tokens += usage.completion_tokens
        self._gpu_s += usage.gpu_s

    def estimate(self, num_bytes: int, seconds: float) -> Usage:
        """Of a request of so many bytes that a model worked on for so long."""
        by_size, by_time = num_bytes / self._num_bytes, seconds / self._seconds
        return Usage(
            round(by_size * self._prompt_tokens),
            round(by_time * self._completion_tokens),
            round(by_size * self._cached_tokens),
            by_time * self._gpu_s,
        )

    def gpu_s(self, completion_tokens: int) -> float:
        """That an answer of so many tokens would have taken."""
        return completion_tokens * self._gpu_s / self._completion_tokens


class Pricing:
    """The first observer: it gives an exchange its cost, and a stream that was cut off its usage.

    prices: of both models, or empty. caps: None where nobody has any.
    """

    def __init__(self, prices: Mapping[Route, PriceConfig], caps: SpendCaps | None = None) -> None:
        self._prices = prices
        self._caps = caps
        self._rates: dict[Route, Rates] = {"weak": Rates(), "strong": Rates()}

    async def admit(self, key_name: str | None) -> None:
        """Raises RequestRefused where a cap does not let a request begin."""
        if self._caps is not None:
            await self._caps.check(key_name)

    def headers(self, exchange: Exchange) -> dict[str, str]:
        """Of a whole answer, whose usage is known."""
        cost_usd = self._cost_usd(exchange, exchange.usage)
        return {} if cost_usd is None else {HEADER: f"{cost_usd:.9f}"}

    def record(self, exchange: Exchange) -> None:
        """As the protocol says."""
        counted = exchange.usage
        if counted is not None and exchange.answered_by is not None and exchange.status == 200:
            self._rates[exchange.answered_by].learn(exchange.num_bytes, exchange.model_seconds, counted)
        usage = counted or self._estimate(exchange)
        if exchange.num_streamed:
            exchange.usage = usage
        if not self._prices:
            return
        exchange.cost_usd = self._cost_usd(exchange, usage)
        if exchange.is_as_scored and usage is not None:
            exchange.saved_usd = self._saved_usd(exchange, usage)
        if self._caps is not None:
            self._caps.record(exchange)

    def _cost_usd(self, exchange: Exchange, usage: Usage | None) -> float | None:
        if not self._prices:
            return None
        route = exchange.asked
        return 0.0 if route is None or usage is None else _price(self._prices[route], usage)

    def _estimate(self, exchange: Exchange) -> Usage | None:
        """None where no model has answered anything: refused, or none was there."""
        if exchange.asked is None or not exchange.may_have_used_tokens:
            return None
        usage = self._rates[exchange.asked].estimate(exchange.num_bytes, exchange.model_seconds)
        return replace(usage, completion_tokens=exchange.num_streamed) if exchange.num_streamed else usage

    def _saved_usd(self, exchange: Exchange, usage: Usage) -> float:
        """The weak answer's tokens at the strong price, less its cost; 0 for a strong answer. Negative where the weak is dearer.

        An estimate, since the strong model's answer would have had another length.
        """
        if not exchange.avoided_strong_call:
            return 0.0
        price = self._prices["strong"]
        tokens = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
        return price.cost_usd(*tokens, self._rates["strong"].gpu_s(usage.completion_tokens)) - (exchange.cost_usd or 0.0)


def _price(price: PriceConfig, usage: Usage) -> float:
    return price.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.gpu_s)
