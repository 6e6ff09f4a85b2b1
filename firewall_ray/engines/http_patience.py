"""How long an actor asks a server again, and what it makes of a server that never answers. Runs on the sampling actors.

Three kinds of failure. A server that takes no requests (429, 503, refused connections) is asked until it has answered nobody for
`outage_s`: hours of sampling must not end with eighteen seconds of 429. What may be one query's own fault (500, an answer that
takes too long) is asked a few times. Anything else is not asked again.
"""

import time
from collections.abc import Callable

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.engines.http_answers import CompletionError

# 425, 52x and 529: a server, Cloudflare before it, and Anthropic, that have no room or no backend now.
BUSY = frozenset({408, 425, 429, 502, 503, 504, 520, 521, 522, 523, 524, 529})
MAY_PASS = BUSY | {409, 500}

# Five waits of 0.5, 1, 2, 4 and 8 s, each with up to a second of jitter: some 18 s in all.
OWN_FAULT_ATTEMPTS = 6
CONNECT_S = 60.0  # of a server that has never answered: more often a wrong address than one that is down
STARVED = 6  # times outage_s, until a request that is refused while others are answered counts as refused for its own sake
SAY_AFTER_S = 5.0  # shorter waits are a busy server's daily life
SAY_EVERY_S = 60.0

_backoff = wait_exponential_jitter(multiplier=0.5, max=30)


class Patience:
    """One actor's. say: tells the driver's log; name: of the server, in what it says."""

    def __init__(self, name: str, config: OpenAIModelConfig, say: Callable[[str], None]) -> None:
        self._name = name
        self._config = config
        self._say = say
        self._last_answer: float | None = None  # on the monotonic clock, as are the times below
        self._down_since: float | None = None
        self._next_word = 0.0

    def answered(self) -> None:
        """To be told after every answer, a refusal of one query included."""
        self._last_answer = time.monotonic()
        if self._down_since is not None and self._next_word:
            self._say(f"{self._name} answers again, after {self._last_answer - self._down_since:,.0f} s")
        self._down_since, self._next_word = None, 0.0

    def retrying(self) -> AsyncRetrying:
        """For one request; the last error is raised as it is."""
        return AsyncRetrying(
            retry=retry_if_exception(may_pass), wait=self._wait, stop=self._stop, before_sleep=self._tell, reraise=True
        )

    def is_outage(self, error: BaseException, since: float) -> bool:
        """Whether the server, not the query, is at fault, for a request that failed for good. since: when it was first sent."""
        now = time.monotonic()
        others_were_answered = self._last_answer is not None and self._last_answer > since
        if is_busy(error):
            return not (others_were_answered and now - since > STARVED * self._config.outage_s)
        return may_pass(error) and not others_were_answered and now - since > self._config.outage_s

    def _wait(self, state: RetryCallState) -> float:
        """Seconds. As the server says, or backing off, and never past the moment at which the job gives up."""
        told = getattr(_error(state), "retry_after_s", 0.0)
        wait = max(_backoff(state), min(told, self._config.max_wait_s))
        # At least a tenth of a second, or a limit that is about to pass would be asked at without a pause.
        return max(0.1, min(wait, self._left_s(state)))

    def _stop(self, state: RetryCallState) -> bool:
        # A number in the config counts whatever fails, busy servers included.
        if self._config.max_attempts is not None and state.attempt_number >= self._config.max_attempts:
            return True
        if not is_busy(_error(state)):
            return self._config.max_attempts is None and state.attempt_number >= OWN_FAULT_ATTEMPTS
        starved = time.monotonic() - state.start_time > STARVED * self._config.outage_s
        return starved or self._left_s(state) <= 0

    def _left_s(self, state: RetryCallState) -> float:
        """Until the outage has lasted for too long: nobody was answered since, or since this request was first sent."""
        limit = self._config.outage_s
        if self._last_answer is None and isinstance(_error(state), httpx.ConnectError | httpx.ConnectTimeout):
            limit = min(limit, CONNECT_S)
        return max(state.start_time, self._last_answer or 0.0) + limit - time.monotonic()

    def _tell(self, state: RetryCallState) -> None:
        error, now = _error(state), time.monotonic()
        self._down_since = self._down_since or now
        wait = state.upcoming_sleep
        # One line for all requests in flight: hundreds of them meet the same 429.
        if now < self._next_word or (wait < SAY_AFTER_S and now - self._down_since < SAY_AFTER_S):
            return
        self._next_word = now + SAY_EVERY_S
        told = getattr(error, "retry_after_s", 0.0)
        asked = f"; it asks to wait {told:,.0f} s, max_wait_s allows {self._config.max_wait_s:,.0f}" if told > wait + 1 else ""
        self._say(
            f"{self._name} takes no requests now ({describe(error)[:200]}); asked again in {wait:,.0f} s{asked}. The job ends once "
            f"it has answered nothing for {self._config.outage_s:,.0f} s (outage_s)"
        )


def is_busy(error: BaseException) -> bool:
    """A server that takes no requests now. A read that timed out may be one query's too long answer."""
    if isinstance(error, CompletionError):
        return error.status in BUSY and not is_account(error)
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.ReadTimeout | httpx.LocalProtocolError)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may be answered later."""
    if isinstance(error, CompletionError):
        return error.status in MAY_PASS and not is_account(error)
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)


def is_account(error: CompletionError) -> bool:
    """OpenAI says 429 to an account without money, which no wait mends."""
    return error.status == 402 or "insufficient_quota" in error.words


def describe(error: BaseException) -> str:
    """On one line. httpx' errors are often empty but for their name."""
    return str(error) if isinstance(error, CompletionError) else f"{type(error).__name__}: {' '.join(str(error).split())}"


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None, "tenacity asks only after a failure"
    return error
