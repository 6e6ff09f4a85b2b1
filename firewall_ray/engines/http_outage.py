"""Which of a server's errors is one query's and which is everybody's: the second ends the job, before it has cost anything.

Runs on the sampling actors. An outage must not turn the rest of a run into rows with `error`, which count as done.
"""

import re

import httpx

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.engines.http_answers import CompletionError
from firewall_ray.engines.http_patience import Patience, describe, is_account
from firewall_ray.errors import EngineDied

# A field or prompt that is not taken (400, 422), or a prompt that is too large (413).
OF_ONE_QUERY = frozenset({400, 413, 422})
SAME_IN_A_ROW = 8  # queries that fail alike, with none answered, until it is not the queries

ABOUT_KEY = re.compile(r"api[ _-]?key|unauthori[sz]ed|authentication", re.IGNORECASE)
ABOUT_SAMPLING = re.compile(r"\btemperature\b|\btop_?p\b", re.IGNORECASE)
ABOUT_MODEL = re.compile(
    r"\bmodel_not_found\b|\bmodel\b.{0,200}?(not (exist|found|supported|available)|no such|unknown|invalid)", re.I
)
NOT_FOUND_MODEL = re.compile(r"(invalid|unknown|no such|not a valid) model", re.IGNORECASE)


class Outages:
    """One actor's count of what fails, and the error that ends its job. section: of the config, such as `models.weak`."""

    def __init__(self, section: str, config: OpenAIModelConfig, patience: Patience) -> None:
        self._section = section
        self._config = config
        self._patience = patience
        self._ever_answered = False
        self._in_a_row: tuple[str, int] = ("", 0)

    def query_answered(self) -> None:
        self._ever_answered = True
        self._in_a_row = ("", 0)

    def of(self, error: CompletionError | httpx.HTTPError, since: float) -> EngineDied | None:
        """The outage that a query's error means, None where it is that query's own. since: when the query was first asked."""
        status = error.status if isinstance(error, CompletionError) else None
        if isinstance(error, CompletionError):
            if error.is_about_content:
                return None
            if (field := self._refused_for_all(error)) is not None:
                return self._died(field, "refuses every request", error)
        if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
            # httpx' words quote the header that it cannot send: the key.
            return EngineDied(
                f"{self._section}.base_url, api_key_env: a request to {self._config.base_url} cannot be made with this "
                f"address and key ({type(error).__name__})."
            )
        if self._patience.is_outage(error, since):
            return self._died("base_url", "does not answer any more", error)
        return self._one_of_many(error, status)

    def _refused_for_all(self, error: CompletionError) -> str | None:
        """The field of the model's config that would mend a refusal, None where it is about the query."""
        status, words = error.status, error.words
        if is_account(error) or status in (401, 402):
            return "api_key_env"
        if status is None or status in OF_ONE_QUERY:
            # Google refuses a key with 400, others a model's id. Once a query has been answered, both were right.
            if status is None or self._ever_answered:
                return None
            if ABOUT_MODEL.search(words) or NOT_FOUND_MODEL.search(words) or error.param == "model":
                return "model"
            # Those that can be left out were; the others decide what is sampled, and are the config's to change.
            if ABOUT_SAMPLING.search(words):
                return "greedy"
            return "api_key_env" if ABOUT_KEY.search(words) else None
        if status in (403, 404, 410):
            about_model = ABOUT_MODEL.search(words) or NOT_FOUND_MODEL.search(words)
            return "model" if about_model else "api_key_env" if status == 403 else "base_url"
        # Any other 3xx or 4xx that does not pass by itself is between us and the server, whatever the query.
        return "base_url" if 300 <= status < 500 and status not in (408, 409, 425, 429) else None

    def _one_of_many(self, error: CompletionError | httpx.HTTPError, status: int | None) -> EngineDied | None:
        if isinstance(error, CompletionError) and status is None:
            return None  # an odd 200: the server answers, and the next query is asked
        kind = f"HTTP {status}" if status is not None else type(error).__name__
        same, count = self._in_a_row
        self._in_a_row = (kind, count + 1 if kind == same else 1)
        # Prompts that are too long may come in a row; but not before any other, and a row of 500s is a broken server at any time.
        if self._in_a_row[1] < SAME_IN_A_ROW or (self._ever_answered and status in OF_ONE_QUERY):
            return None
        return self._died("base_url", f"failed {SAME_IN_A_ROW} queries in a row alike", error)

    def _died(self, field: str, what: str, error: BaseException) -> EngineDied:
        hint = ""
        if field == "api_key_env":
            variable = self._config.api_key_env
            hint = " (no key is sent: api_key_env is not set)" if variable is None else f" (the key is read from {variable})"
        if field == "model":
            hint = f" (the id that is asked for is {self._config.model!r})"
        if field == "greedy":
            hint = f" (set sampling.top_p or sampling.temperature to 1, and {self._section}.greedy: sampled where 0 is refused)"
        return EngineDied(f"{self._section}.{field}: {self._config.base_url} {what}{hint}: {describe(error)}")
