"""Answers in, verdicts out, by asking a model that is served elsewhere.

Runs as an actor beside the grading tasks (`stages/judging.py`).

Each question is one row's affair: a judge that cannot be read, or refuses a text, costs that row. A server that does not answer any
more, refuses everything, or has been paid `max_calls` answers ends the job. Every answer is kept (`cache.py`), so that the same
command then pays only for those that are missing.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import httpx

from firewall_ray.config.judge import JudgeConfig
from firewall_ray.engines.connection import Connection, RequestsSpent
from firewall_ray.engines.http_answers import CompletionError, completions_of
from firewall_ray.engines.rows import Completion, without_surrogates
from firewall_ray.errors import ConfigError
from firewall_ray.judge.cache import VerdictCache, cache_key
from firewall_ray.judge.prompts import PLACES, VERDICTS, Preference, absolute_prompt, pair_prompt, preference, reminder
from firewall_ray.judge.verdicts import read_verdict
from firewall_ray.store.dataset import Dataset

MAX_SHOWN_CHARS = 120


class Judged(NamedTuple):
    """verdict: one of VERDICTS; None where there is an error in its place."""

    verdict: str | None
    error: str | None = None


class ToJudge(NamedTuple):
    """Answers to a question. reference: a JSON value, None where there is none. anchor: the answer to beat, for pairwise."""

    question: str
    reference: Any
    answers: Sequence[str]
    anchor: str | None = None


class Unreadable(Exception):
    """The judge has answered twice without a verdict."""


class Judge:
    """section: of the config, for messages. secret: the API key, in no message. say: tells the driver's log."""

    def __init__(
        self,
        section: str,
        config: JudgeConfig,
        cache: Dataset,
        secret: str | None = None,
        say: Callable[[str], None] = lambda line: None,
        *,
        forget_unreadable: bool = False,
    ) -> None:
        self._section = section
        self._config = config
        self._settings = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        self._cache = VerdictCache(cache, forget_unreadable=forget_unreadable)
        self._server = Connection(section, config.server, secret, say, running=self._running, max_requests=config.max_calls)
        self._num_running = 0
        self._hits = self._unreadable = 0

    async def judge(self, rows: Sequence[ToJudge]) -> list[dict[str, Judged]]:
        """Of each row, what is said of each of its answers, all asked side by side.

        Raises EngineDied, StorageFailure, and ConfigError once max_calls are spent; what was answered until then is kept.
        """
        pairs = [(row, answer) for row in rows for answer in dict.fromkeys(row.answers)]
        # Not cancelled by the first error: what is in flight is paid for, so it is waited for and kept.
        found = await asyncio.gather(*(self._judged(row, answer) for row, answer in pairs), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        judged = iter(found)
        return [{answer: next(judged) for answer in dict.fromkeys(row.answers)} for row in rows]  # type: ignore[misc]

    async def compare(self, question: str, reference: Any, one: str, other: str) -> Preference:
        """Which answer is better, asked in both orders. Raises as `judge` does, and for what is one row's affair."""
        if one.strip() == other.strip():
            return "tie"
        prompts = [pair_prompt(self._config.rubric, question, reference, *pair) for pair in ((one, other), (other, one))]
        found = await asyncio.gather(*(self._verdict("pair", prompt, PLACES) for prompt in prompts), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return preference(*found)  # type: ignore[arg-type]

    async def close(self) -> dict[str, int]:
        """Write what is not written yet, and return the counts. Waits for calls in flight, which are paid for."""
        self._server.stop()
        while self._num_running:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._cache.flush)
        await self._server.client.aclose()
        return self.counts()

    def counts(self) -> dict[str, int]:
        """calls: answers paid for; cache_hits: verdicts that were there already; unreadable: questions without one."""
        return {"calls": self._server.num_requests, "cache_hits": self._hits, "unreadable": self._unreadable}

    def _running(self, change: int) -> None:
        self._num_running += change

    async def _judged(self, row: ToJudge, answer: str) -> Judged:
        if not answer.strip():
            return Judged("no_answer")
        since = time.monotonic()
        try:
            return Judged(
                await self._absolute(row, answer) if self._config.mode == "absolute" else await self._against(row, answer)
            )
        except Unreadable as e:
            return Judged(None, str(e))
        except (CompletionError, httpx.HTTPError) as e:
            if (outage := self._server.outage_of(e, since)) is not None:
                # From None: the error itself may quote the key, and a traceback shows it.
                raise outage from None
            return Judged(None, self._server.without_secret(f"the judge did not answer: {type(e).__name__}: {e}"))
        except RequestsSpent:
            raise ConfigError(
                f"{self._section}.max_calls: the judge has given the {self._config.max_calls:,} answers that it allows; there are "
                "texts left to judge. All verdicts are kept. Run the same command again for as many calls more, or raise it."
            ) from None

    async def _absolute(self, row: ToJudge, answer: str) -> str:
        prompt = absolute_prompt(self._config.rubric, row.question, row.reference, answer)
        return await self._verdict("absolute", prompt, VERDICTS)

    async def _against(self, row: ToJudge, answer: str) -> str:
        """Right unless the anchor is better in both orders: a tie, or a preference that changes with the order, is no loss."""
        if row.anchor is None:
            raise Unreadable("the strong model has no greedy answer to this question, to which answers could be compared")
        return "wrong" if await self.compare(row.question, row.reference, row.anchor, answer) == "one" else "right"

    async def _verdict(self, kind: Literal["absolute", "pair"], prompt: str, words: tuple[str, ...]) -> str:
        """One of `words`, from the cache or from the judge. Raises Unreadable."""
        key = cache_key(kind, self._config.model, prompt, self._settings)
        if key in self._cache:
            self._hits += 1
            if (kept := self._cache[key]) is None:
                self._unreadable += 1
                raise Unreadable("the judge's answer, kept from an earlier run, has no verdict; --retry-errors asks it again")
            return kept
        said: list[Completion] = []
        verdict = None
        messages = [{"role": "user", "content": prompt}]
        for _ in range(2):
            said.append(await self._ask(messages))
            if (verdict := read_verdict(said[-1].text, words)) is not None:
                break
            messages += [{"role": "assistant", "content": said[-1].text}, {"role": "user", "content": reminder(words)}]
        self._server.query_answered()
        self._cache.add(key, self._config.model, verdict, "\n---\n".join(without_surrogates(each.text) for each in said))
        if self._cache.is_due:
            await asyncio.to_thread(self._cache.flush)  # hundreds of milliseconds on a store of objects; others go on meanwhile
        if verdict is None:
            self._unreadable += 1
            cut = f"; it was cut off at {self._section}.max_tokens" if said[-1].finish_reason == "length" else ""
            shown = " ".join(said[-1].text.split())[:MAX_SHOWN_CHARS]
            raise Unreadable(
                self._server.without_secret(f"the judge, asked twice, gave no verdict that can be read{cut}: {shown!r}")
            )
        return verdict

    async def _ask(self, messages: list[dict[str, str]]) -> Completion:
        self._server.check()
        body = {"model": self._config.model, "messages": messages, **self._settings}
        return completions_of(await self._server.ask("judge", body))[0]
