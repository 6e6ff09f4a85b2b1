"""What an OpenAI-compatible server does not take, learnt from its refusals: requests are then asked in its own dialect.

Runs on the sampling actors. A refused request costs nothing, so what is refused is asked again without the field that the refusal
names; where it names none, without each field in turn. Only what then gets an answer is learnt, and said in the job's log.
"""

import re
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from firewall_ray.engines.http_answers import CompletionError

Body = dict[str, Any]
Post = Callable[[Body], Awaitable[dict[str, Any]]]

REFUSED_FIELD = frozenset({400, 422})  # 422 is what servers made with FastAPI say of a field
MOST_STOPS = 4  # OpenAI's limit, which others copied

# A prompt that is too long is refused in words that name `max_tokens` too. A server that does not know `max_completion_tokens` may
# then take it, and write without a limit from there on.
ABOUT_LENGTH = re.compile(r"context|too (long|large|many)|maximum|exceed|reduce", re.IGNORECASE)


@dataclass(frozen=True)
class Concession:
    """A field that can be done without. applies: whether a body would change; named: what a refusal calls it; says: for the log."""

    name: str
    named: re.Pattern[str]
    applies: Callable[[Body], bool]
    without: Callable[[Body], Body]
    says: str


def _is_about_length(concession: Concession, refusal: CompletionError) -> bool:
    return concession.name == "max_tokens" and bool(ABOUT_LENGTH.search(refusal.words))


def _less(*fields: str) -> Callable[[Body], Body]:
    return lambda body: {name: value for name, value in body.items() if name not in fields}


def concessions(*, greedy_is_sampled: bool) -> tuple[Concession, ...]:
    """In the order in which they are tried: what is least missed first.

    temperature and top_p are left out only where they are 1, the API's default: anything else would change what is sampled.
    greedy_is_sampled: the config allows that the greedy answer is not.
    """

    def may_lack_temperature(body: Body) -> bool:
        return body.get("temperature") == 1 or (greedy_is_sampled and body.get("temperature") == 0)

    return (
        Concession(
            "stop 4",
            re.compile(r"\bstop"),
            lambda body: len(body.get("stop", ())) > MOST_STOPS,
            lambda body: {**body, "stop": body["stop"][:MOST_STOPS]},
            f"only the first {MOST_STOPS} stop strings are sent; texts are cut at the others here, and longer ones are paid for",
        ),
        Concession(
            # One letter is in every sentence, so it counts only in quotes, alone, or where the sentence is about it.
            "n",
            re.compile(r"['\"`]n['\"`]|^n$|\b[Pp]arameter:? n\b|\bn (must|is|>|=|should|was)"),
            lambda body: "n" in body,
            _less("n"),
            "each sample is its own request",
        ),
        Concession("top_p", re.compile(r"\btop_?p\b"), lambda body: body.get("top_p") == 1, _less("top_p"), "`top_p` is left out"),
        Concession(
            "stop",
            re.compile(r"\bstop"),
            lambda body: "stop" in body,
            _less("stop"),
            "no stop strings are sent; texts are cut at them here, and longer ones are paid for",
        ),
        Concession(
            "logprobs",
            re.compile(r"log_?prob"),
            lambda body: "logprobs" in body,
            _less("logprobs", "top_logprobs"),
            "it gives no logprobs, so greedy_margin is null",
        ),
        Concession(
            "temperature", re.compile(r"\btemperature\b"), may_lack_temperature, _less("temperature"), "`temperature` is left out"
        ),
        Concession(
            # OpenAI's reasoning models know the limit by its second name alone.
            "max_tokens",
            re.compile(r"\bmax_tokens\b|\bmax_completion_tokens\b"),
            lambda body: "max_tokens" in body,
            lambda body: {("max_completion_tokens" if name == "max_tokens" else name): value for name, value in body.items()},
            "`max_tokens` is sent as `max_completion_tokens`",
        ),
    )


class Dialect:
    """One actor's knowledge of its server. say: tells the driver's log what is learnt."""

    def __init__(self, say: Callable[[str], None], *, greedy_is_sampled: bool = False) -> None:
        self._say = say
        self._concessions = concessions(greedy_is_sampled=greedy_is_sampled)
        self._learnt: frozenset[str] = frozenset()  # names of concessions
        self._proven: set[str] = set()  # kinds of request that were answered once

    async def ask(self, kind: str, body: Body, post: Post) -> dict[str, Any]:
        """The answer to `body`, without what the server refuses. kind: of request, those of one kind have the same fields.

        Raises what `post` raises; a refusal that no concession mends comes as it was.
        """
        try:
            answer = await post(self._spoken(body, self._learnt))
        except CompletionError as e:
            # Once a kind of request has been taken, it is the query that is refused.
            if e.status not in REFUSED_FIELD or kind in self._proven:
                raise
            answer = await self._without_what_is_refused(body, post, e)
        self._proven.add(kind)
        return answer

    async def _without_what_is_refused(self, body: Body, post: Post, refusal: CompletionError) -> dict[str, Any]:
        learnt, useless, error = self._learnt, set[str](), refusal
        # Each turn makes a concession more or finds one useless, so the turns are bounded by the concessions.
        while named := self._named(error, self._spoken(body, learnt), useless):
            answer, again = await self._try(body, learnt | {named}, post)
            if again is None:
                self._learn(learnt | {named})
                return answer
            if again.words == error.words:  # refused for another field, as where the message lists all that are known
                useless.add(named)
            else:
                learnt, error = learnt | {named}, again
        spoken = self._spoken(body, self._learnt)
        possible = [each.name for each in self._concessions if each.applies(spoken) and not _is_about_length(each, refusal)]
        # The refusal names no field that helps. Each alone first, to give up no more than has to be; then all at once.
        for tried in (*([name] for name in possible), possible):
            answer, again = await self._try(body, self._learnt | set(tried), post)
            if again is None:
                # Some refusals pass by themselves. One that was none of a field must not cost every row its margin.
                whole, still_refused = await self._try(body, self._learnt, post)
                if still_refused is None:
                    return whole
                self._learn(self._learnt | set(tried))
                return answer
        raise refusal

    async def _try(self, body: Body, learnt: Iterable[str], post: Post) -> tuple[dict[str, Any], CompletionError | None]:
        """The answer; or nothing, and the refusal of a field. Raises any other error."""
        try:
            return await post(self._spoken(body, frozenset(learnt))), None
        except CompletionError as e:
            if e.status not in REFUSED_FIELD:
                raise
            return {}, e

    def _named(self, refusal: CompletionError, body: Body, useless: Container[str]) -> str | None:
        """The first concession, none of `useless`, that the refusal names and that would change the body."""
        for text in (refusal.param, refusal.words):
            for each in self._concessions:
                if each.name in useless or not text or not each.named.search(text):
                    continue
                if each.applies(body) and not _is_about_length(each, refusal):
                    return each.name
        return None

    def _spoken(self, body: Mapping[str, Any], learnt: frozenset[str]) -> Body:
        spoken = dict(body)
        for each in self._concessions:
            if each.name in learnt and each.applies(spoken):
                spoken = each.without(spoken)
        return spoken

    def _learn(self, learnt: frozenset[str]) -> None:
        for each in self._concessions:
            if each.name in learnt - self._learnt:
                self._say(f"the server refuses `{each.name.split()[0]}`: {each.says}")
        self._learnt |= learnt
