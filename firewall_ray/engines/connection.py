"""A line to an OpenAI-compatible server: so many requests in flight, each asked again where that may help.

Runs on sampling actors and on a judge's. What the server refuses is learnt (`http_dialect.py`), what passes is waited for
(`http_patience.py`), and an outage, once found, ends every later request (`http_outage.py`).
"""

import asyncio
from collections.abc import Callable

import httpx

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.engines.http_answers import CompletionError, answer_of
from firewall_ray.engines.http_dialect import Body, Dialect
from firewall_ray.engines.http_outage import OF_ONE_QUERY, Outages
from firewall_ray.engines.http_patience import Patience
from firewall_ray.errors import EngineDied, FirewallRayError


class RequestsSpent(FirewallRayError):
    """As many requests as the connection may pay for have been answered, or may have been."""


class Connection:
    """section: of the config, such as `models.weak`. secret: the API key, in no message. say: tells the driver's log.

    running: told +1 and -1 as requests begin and end. max_requests: that the server may ask money for; None: no limit.
    """

    def __init__(
        self,
        section: str,
        config: OpenAIModelConfig,
        secret: str | None,
        say: Callable[[str], None],
        *,
        running: Callable[[int], None] = lambda change: None,
        max_requests: int | None = None,
    ) -> None:
        self._section = section
        self._config = config
        self._secret = secret
        self._say = say
        self._running = running
        self._max_requests = max_requests
        self.num_requests = 0  # answered, in flight, to be tried again, or timed out; what was refused for good costs nothing
        self._url = config.base_url.rstrip("/") + ("/chat/completions" if config.api == "chat" else "/completions")
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        # httpx keeps 20 connections alive unless told otherwise, and would open the others anew for every request.
        limits = httpx.Limits(max_connections=config.max_concurrency, max_keepalive_connections=config.max_concurrency)
        self.client = httpx.AsyncClient(headers=headers, timeout=config.timeout_s, limits=limits)
        self._dialect = Dialect(self.warn, greedy_is_sampled=config.greedy == "sampled")
        self._patience = Patience(config.base_url, config, self.warn)
        self._outages = Outages(section, config, self._patience)
        self._outage: EngineDied | None = None
        self._slots: asyncio.Semaphore | None = None  # made on first use: it belongs to the event loop of the calls

    async def ask(self, kind: str, body: Body) -> Body:
        """The answer, an object with `choices`. kind: of request, see `Dialect.ask`.

        Raises CompletionError and httpx.HTTPError once nothing helps, EngineDied where an outage has been found, RequestsSpent.
        """
        return await self._dialect.ask(kind, body, self._post)

    def check(self) -> None:
        """Raises EngineDied where an outage has been found."""
        if self._outage is not None:
            raise self._outage

    def stop(self) -> None:
        """No request is sent any more; those in flight go on."""
        self._outage = self._outage or EngineDied(f"{self._section}: its requests were stopped")

    def outage_of(self, error: CompletionError | httpx.HTTPError, since: float) -> EngineDied | None:
        """The outage that an error of `ask` means, None where it is that query's own; see `Outages.of`."""
        if self._outage is None and (found := self._outages.of(error, since)) is not None:
            self._outage = EngineDied(self.without_secret(str(found)))
        return self._outage

    def query_answered(self) -> None:
        """To be told of each query that came to its end, so that those which fail alike in a row are seen."""
        self._outages.query_answered()

    def warn(self, line: str) -> None:
        self._say(self.without_secret(f"{self._section}: {line}"))

    def without_secret(self, text: str) -> str:
        """Some servers repeat the key that they refuse."""
        return text.replace(self._secret, "[the key]") if self._secret else text

    async def _post(self, body: Body) -> Body:
        self._slots = self._slots or asyncio.Semaphore(self._config.max_concurrency)
        is_taken = False  # one of max_requests, which nobody has been paid for yet
        try:
            async for attempt in self._patience.retrying():
                with attempt:
                    # The slot is given back before the wait for the next try: meanwhile others may be answered. The place among
                    # max_requests is not, or another request would find none left while this one is still to be answered.
                    async with self._slots:
                        self.check()
                        if not is_taken:
                            self._take()
                            is_taken = True
                        try:
                            response = await self._send(body)
                        except httpx.ReadTimeout:
                            is_taken = False  # the server may have worked on it, and ask money for it
                            raise
                        is_taken = response.status_code != 200
                    return self._answer(response)
        finally:
            self.num_requests -= is_taken
        raise AssertionError("unreachable: the last attempt raises")

    def _take(self) -> None:
        # Before the request is sent, or all that are in flight would go beyond the limit.
        if self._max_requests is not None and self.num_requests >= self._max_requests:
            raise RequestsSpent
        self.num_requests += 1

    async def _send(self, body: Body) -> httpx.Response:
        self._running(+1)
        try:
            return await self.client.post(self._url, json=body)
        finally:
            self._running(-1)

    def _answer(self, response: httpx.Response) -> Body:
        try:
            answer = answer_of(response)
        except CompletionError as e:
            # Whoever refuses one query is there, and takes requests.
            if e.status is None or e.status in OF_ONE_QUERY:
                self._patience.answered()
            raise
        self._patience.answered()
        return answer
