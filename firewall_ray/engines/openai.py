"""An OpenAI-compatible HTTP server as an engine: the same rows as vLLM's, for a model that is served elsewhere.

Rows in: `query_id`, `task`, `prompt`, `question`. Rows out: `samples/`. Runs on each sampling actor, which
only waits on the network: requests in flight are bounded by `max_concurrency`, and asked again where that may help; see
`connection.py`.

What then still fails is one of two things. A query that the server cannot answer becomes a row with `error`. A server that
cannot be reached, takes no more requests or refuses them all ends the job, resumable (`http_outage.py`).

The first query is asked alone, its greedy answer before its samples: what the server refuses is learnt there (`http_dialect.py`),
or ends the job, before more is paid than one query. It is a query that has to be asked anyway, and from where all will be asked.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import httpx
import pyarrow as pa

from firewall_ray.config.api_key import read_api_key
from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.engines.connection import Connection
from firewall_ray.engines.http_answers import CompletionError, completions_of, cut, first_token_margin, usage_of
from firewall_ray.engines.http_dialect import Body
from firewall_ray.engines.http_outage import OF_ONE_QUERY
from firewall_ray.engines.prompts import Message
from firewall_ray.engines.report import EngineReport
from firewall_ray.engines.rows import Completion, SamplingSpec, error_row, sample_row, to_table
from firewall_ray.errors import EngineDied

T = TypeVar("T")

logger = logging.getLogger(__name__)


def api_key(key: str, config: OpenAIModelConfig) -> str | None:
    """The key from this process' environment, see `read_api_key`."""
    return read_api_key(config.api_key_env, f"models.{key}.api_key_env")


class OpenAISampler:
    """The callable that `Dataset.map_batches` constructs once on every actor. `secret` is the API key, never logged."""

    def __init__(
        self, model: str, config: OpenAIModelConfig, spec: SamplingSpec, progress: Any = None, secret: str | None = None
    ) -> None:
        self.model = model
        self._config = config
        self._spec = spec
        self._report = EngineReport(model, progress)
        self._server = Connection(f"models.{model}", config, secret, lambda line: self._report.warn(line), running=self._running)
        self._is_proven = False  # a query was answered, or failed in a way that says nothing of the next one
        self._most_choices = spec.num_samples if config.supports_n else 1  # of one request
        self._gives_n = False
        self._first: asyncio.Lock | None = None  # made on first use: it belongs to the event loop of the calls

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        self._first = self._first or asyncio.Lock()
        if not self._is_proven:
            self._report.state("first batch")
        rows = await _all(self._row(query) for query in batch.to_pylist())
        self._report.flush()
        yield to_table(rows)

    async def _row(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """One row, whatever comes. Raises EngineDied."""
        assert self._first is not None
        if not self._is_proven:
            # Those that wait here find it proven, and go on side by side.
            async with self._first:
                if not self._is_proven:
                    return await self._counted(query)
        return await self._counted(query)

    async def _counted(self, query: Mapping[str, Any]) -> dict[str, Any]:
        self._server.check()  # another batch may have found an outage
        work = _Work(self._report)
        row = await self._asked(query, work)
        self._report.row(row)
        work.rest()
        return row

    async def _asked(self, query: Mapping[str, Any], work: "_Work") -> dict[str, Any]:
        since = time.monotonic()
        try:
            # One after the other: what is refused has then cost no samples.
            greedy, margin = await self._greedy(query, work)
            samples, num_prompt_tokens = await self._sampled(query, work)
            row = sample_row(query, self.model, samples, greedy, margin, num_prompt_tokens)
            to_table([row])  # what Arrow cannot hold shows here, where it costs one row
        except (CompletionError, httpx.HTTPError) as e:
            if (outage := self._server.outage_of(e, since)) is not None:
                # From None: the error itself may quote the key, and a traceback shows it.
                raise outage from None
            # Only refusals of the query leave it open whether the server takes any.
            self._is_proven |= not isinstance(e, CompletionError) or e.status not in OF_ONE_QUERY
            return self._error_row(query, e)
        except EngineDied:
            raise  # another query has found it, while this one waited for its turn
        except Exception as e:
            # A bug of ours. It must not cost the batch, nor be as quiet as a row.
            logger.exception("query %s of models.%s", query["query_id"], self.model)
            self._server.warn(f"query {query['query_id']} failed in this program, which is a bug: {type(e).__name__}: {e}")
            return self._error_row(query, e)
        self._is_proven = True
        self._server.query_answered()
        return row

    async def _greedy(self, query: Mapping[str, Any], work: "_Work") -> tuple[Completion, float | None]:
        top2 = {"logprobs": True, "top_logprobs": 2} if self._config.api == "chat" else {"logprobs": 2}
        answer = await self._ask("greedy", query, {"n": 1, "temperature": 0.0, **top2})
        # A row's work is its n samples and the greedy answer, all alike.
        work.done(1 / (self._spec.num_samples + 1))
        margin = first_token_margin(answer) if self._config.greedy == "required" else None
        return self._completions(query, answer)[0], margin

    async def _sampled(self, query: Mapping[str, Any], work: "_Work") -> tuple[list[Completion], int | None]:
        """The n samples in as few requests as the server gives them in, and the prompt's tokens as it counts them."""
        spec = self._spec
        completions: list[Completion] = []
        num_prompt_tokens = None
        while missing := spec.num_samples - len(completions):
            size = min(missing, self._most_choices)
            settings = {"n": size, "temperature": spec.temperature, "top_p": spec.top_p}
            # The first request goes alone where the server has never shown that it gives as many choices as are asked for.
            at_once = missing // size if self._gives_n or size == 1 else 1
            for answer in await _all(self._ask("sampled", query, settings) for _ in range(at_once)):
                given = self._completions(query, answer)[:size]
                self._learn_choices(asked=size, given=len(given))
                work.done(len(given) / (spec.num_samples + 1))
                completions += given
                num_prompt_tokens = usage_of(answer, "prompt_tokens") if num_prompt_tokens is None else num_prompt_tokens
        return completions[: spec.num_samples], num_prompt_tokens

    def _learn_choices(self, *, asked: int, given: int) -> None:
        """Fewer choices than asked for: the server ignores `n`, or has a limit. One that gave as many before has only stumbled."""
        if given == asked:
            self._gives_n |= asked > 1
        elif not self._gives_n and given < self._most_choices:
            self._most_choices = given
            self._server.warn(f"the server gives {given} of n = {asked} samples; the others are asked for in requests of {given}")

    def _completions(self, query: Mapping[str, Any], answer: Mapping[str, Any]) -> list[Completion]:
        stop = self._spec.stop[query["task"]]
        return [cut(completion, stop) for completion in completions_of(answer)]

    async def _ask(self, kind: str, query: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        task = query["task"]
        body: Body = {"model": self._config.model, "max_tokens": self._spec.max_tokens[task], **settings}
        if self._spec.stop[task]:
            body["stop"] = list(self._spec.stop[task])
        if self._config.api == "chat":
            body["messages"] = self._messages(query)
            if self._spec.prompt.template_kwargs:
                body["chat_template_kwargs"] = dict(self._spec.prompt.template_kwargs)
        else:
            body["prompt"] = self._spec.prompt.raw(query)
        # Five stop strings may be refused where two are taken, so their number is part of the kind.
        return await self._server.ask(f"{kind}, {len(self._spec.stop[task])} stop strings", body)

    def _messages(self, query: Mapping[str, Any]) -> list[Message]:
        prompt = self._spec.prompt
        # prompt: raw, where a server has no /completions: the paper's prompt is the user's message.
        return prompt.messages(query) if prompt.is_chat else [{"role": "user", "content": prompt.raw(query)}]

    def _error_row(self, query: Mapping[str, Any], error: Exception) -> dict[str, Any]:
        row = error_row(query, self.model, error)
        return {**row, "error": self._server.without_secret(row["error"])}

    def _running(self, change: int) -> None:
        self._report.level("running", change)


class _Work:
    """One row's share of the progress: 1 in all, however many requests it takes and however it ends."""

    def __init__(self, report: EngineReport) -> None:
        self._report = report
        self._left = 1.0

    def done(self, amount: float) -> None:
        amount = min(amount, self._left)
        self._left -= amount
        self._report.add({"work": amount})

    def rest(self) -> None:
        self.done(self._left)


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """As asyncio.gather, but the first error ends the others: after an outage nothing more is asked, nor paid."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
