"""An OpenAI-compatible HTTP server as an engine: the same rows as vLLM's, for a model that is served elsewhere.

Rows in: `query_id`, `task`, `prompt`. Rows out: `samples/`. Runs on each sampling actor, which only waits on the network:
requests in flight are bounded by `max_concurrency`, and tried again with exponential backoff and jitter on the statuses
and network errors that may pass.

What then still fails is one of two things. A query that the server cannot answer becomes a row with `error`. A server that
cannot be reached or takes no more requests ends the job, resumable: an outage must not turn the rest of a run into errors.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pyarrow as pa
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from tenacity.wait import wait_base

from firewall_ray.api_key import read_api_key
from firewall_ray.config import OpenAIModelConfig
from firewall_ray.engines.rows import Completion, RowCounts, SamplingSpec, error_row, sample_row, to_table
from firewall_ray.errors import EngineDied, FirewallRayError

UNAVAILABLE_STATUSES = frozenset({408, 429, 502, 503, 504})
RETRYABLE_STATUSES = UNAVAILABLE_STATUSES | {409, 500}


class CompletionError(FirewallRayError):
    """The server answered with a status or a body that is not a completion."""

    def __init__(self, message: str, status: int | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


def api_key(key: str, config: OpenAIModelConfig) -> str | None:
    """The key from this process' environment, see `read_api_key`."""
    return read_api_key(config.api_key_env, f"models.{key}.api_key_env")


class OpenAISampler:
    """The callable that `Dataset.map_batches` constructs once on every actor. `secret` is the API key, never logged."""

    def __init__(
        self, model: str, config: OpenAIModelConfig, spec: SamplingSpec, progress: Any = None, secret: str | None = None
    ) -> None:
        self.model = model
        self._counts = RowCounts(model, progress)
        self._config = config
        self._spec = spec
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        limits = httpx.Limits(max_connections=config.max_concurrency, max_keepalive_connections=config.max_concurrency)
        self._client = httpx.AsyncClient(headers=headers, timeout=config.timeout_s, limits=limits)
        self._slots: asyncio.Semaphore | None = None  # made on first use: it belongs to the event loop of the calls

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        self._slots = self._slots or asyncio.Semaphore(self._config.max_concurrency)
        rows = await asyncio.gather(*(self._row(query) for query in batch.to_pylist()))
        self._counts.add(rows)
        yield to_table(rows)

    async def _row(self, query: Mapping[str, Any]) -> dict[str, Any]:
        try:
            (samples, num_prompt_tokens), (greedy, margin) = await asyncio.gather(self._sampled(query), self._greedy(query))
        except (CompletionError, httpx.HTTPError) as e:
            if _is_outage(e):
                raise EngineDied(f"models.{self.model}.base_url: {self._config.base_url} does not answer any more: {e!r}") from e
            return error_row(query, self.model, e)  # this query alone failed; the others go on
        return sample_row(query, self.model, samples, greedy, margin, num_prompt_tokens)

    async def _sampled(self, query: Mapping[str, Any]) -> tuple[list[Completion], int | None]:
        spec = self._spec
        n = spec.num_samples if self._config.supports_n else 1
        settings = {"n": n, "temperature": spec.temperature, "top_p": spec.top_p}
        answers = await asyncio.gather(*(self._post(query, settings) for _ in range(spec.num_samples // n)))
        completions = [completion for answer in answers for completion in completions_of(answer)]
        if len(completions) != spec.num_samples:
            raise CompletionError(
                f"asked for n = {spec.num_samples} samples, got {len(completions)}: the server ignores `n`; "
                f"set models.{self.model}.supports_n: false"
            )
        return completions, (answers[0].get("usage") or {}).get("prompt_tokens")

    async def _greedy(self, query: Mapping[str, Any]) -> tuple[Completion, float | None]:
        chat = self._config.api == "chat"
        top2 = {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2}
        answer = await self._post(query, {"n": 1, "temperature": 0.0, **top2})
        return completions_of(answer)[0], first_token_margin(answer)

    async def _post(self, query: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        assert self._slots is not None
        task = query["task"]
        body: dict[str, Any] = {"model": self._config.model, "max_tokens": self._spec.max_tokens[task], **settings}
        if self._spec.stop[task]:
            body["stop"] = list(self._spec.stop[task])
        if self._config.api == "chat":
            url, body["messages"] = "/chat/completions", [{"role": "user", "content": query["prompt"]}]
        else:
            url, body["prompt"] = "/completions", query["prompt"]
        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(self._config.max_attempts),
            wait=_WaitAsTold(),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                async with self._slots:
                    response = await self._client.post(self._config.base_url.rstrip("/") + url, json=body)
                return _checked(response)
        raise AssertionError("unreachable: the last attempt raises")


class _WaitAsTold(wait_base):
    """Exponential backoff with jitter, from half a second to half a minute, and never less than the server's Retry-After."""

    _backoff = wait_exponential_jitter(initial=0.5, max=30)

    def __call__(self, retry_state: Any) -> float:
        error = retry_state.outcome.exception()
        return max(self._backoff(retry_state), getattr(error, "retry_after_s", 0.0))


def completions_of(answer: Mapping[str, Any]) -> list[Completion]:
    """The choices of a completions or chat answer. Token counts are known only where one choice has the usage to itself."""
    choices = answer["choices"]
    alone = (answer.get("usage") or {}).get("completion_tokens") if len(choices) == 1 else None
    return [Completion(_text(choice), alone, choice.get("finish_reason")) for choice in choices]


def first_token_margin(answer: Mapping[str, Any]) -> float | None:
    """p1 - p2 of the first token, from either API's logprobs; None where the server sends none."""
    logprobs = answer["choices"][0].get("logprobs") or {}
    if "content" in logprobs:  # chat
        content = logprobs["content"] or []
        top = [entry["logprob"] for entry in content[0]["top_logprobs"]] if content else []
    else:  # completions
        tops = logprobs.get("top_logprobs") or []
        top = list(tops[0].values()) if tops and tops[0] else []
    if not top:
        return None
    first, second, *_ = [*sorted((math.exp(value) for value in top), reverse=True), 0.0]
    return first - second


def _text(choice: Mapping[str, Any]) -> str:
    return (choice["message"].get("content") or "") if "message" in choice else choice["text"]


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, httpx.TransportError) or (isinstance(error, CompletionError) and error.status in RETRYABLE_STATUSES)


def _is_outage(error: BaseException) -> bool:
    """Whether the server, not the query, is at fault. A read that timed out may be one query's too long answer."""
    if isinstance(error, CompletionError):
        return error.status in UNAVAILABLE_STATUSES
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.ReadTimeout)


def _checked(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != 200:
        retry_after = response.headers.get("retry-after", "")
        raise CompletionError(
            f"HTTP {response.status_code} from {response.request.url}: {response.text[:500]}",
            response.status_code,
            float(retry_after) if retry_after.isdigit() else 0.0,
        )
    try:
        answer: dict[str, Any] = response.json()
        if not answer["choices"]:
            raise KeyError("choices")
    except (ValueError, KeyError, TypeError) as e:
        raise CompletionError(f"not a completion from {response.request.url}: {response.text[:200]}") from e
    return answer
