"""What an OpenAI-compatible server's answer says, however odd: texts that Arrow can hold, or an error. Runs on the sampling actors.

Whatever JSON a server sends, the functions here return or raise CompletionError, nothing else: one odd answer is one query's
affair, and must not cost the batch that it came in.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from firewall_ray.engines.rows import Completion
from firewall_ray.errors import FirewallRayError

MAX_COUNT = 2**31 - 1  # samples/ holds counts as int32
ABOUT_CONTENT = re.compile(r"moderation|content[_ ](filter|policy|management)|flagged", re.IGNORECASE)


class CompletionError(FirewallRayError):
    """The server answered with a status or a body that is not a completion.

    status: None where it was a 200 whose body is odd. param, words: what a refusal names, and all that it says.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after_s: float = 0.0, param: str | None = None, words: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.param = param
        self.words = words

    @property
    def is_about_content(self) -> bool:
        """A moderated prompt: some servers answer 403 to that, which otherwise is about the key."""
        return bool(ABOUT_CONTENT.search(self.words))


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The body as an object with a list of `choices` that is not empty. Raises CompletionError."""
    if response.status_code != 200:
        raise _refusal(response, response.status_code, _json_of(response))
    answer = _json_of(response)
    if not isinstance(answer, dict):
        raise CompletionError(f"not a completion from {response.url}: {_words(response)[:200]}")
    choices = answer.get("choices")
    failed = [choice for choice in choices if isinstance(choice, dict) and choice.get("error")] if isinstance(choices, list) else []
    # A 200 with an `error` is how gateways pass on what their own provider answered, sometimes beside an empty choice.
    for holder in (answer, *failed):
        if error := holder.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            is_status = re.fullmatch(r"[45]\d\d", str(code), re.ASCII) is not None
            raise _refusal(response, int(str(code)) if is_status else None, {"error": error})
    if not isinstance(choices, list) or not choices:
        raise CompletionError(f"not a completion from {response.url}: {_words(response)[:200]}")
    return answer


def completions_of(answer: Mapping[str, Any]) -> list[Completion]:
    """The choices of a completions or chat answer. Token counts are known only where one choice has the usage to itself."""
    choices = answer["choices"]
    alone = usage_of(answer, "completion_tokens") if len(choices) == 1 else None
    return [Completion(_text(choice), alone, _finish_reason(choice)) for choice in choices]


def usage_of(answer: Mapping[str, Any], name: str) -> int | None:
    """A count of `usage`, None where it is missing or no count."""
    usage = answer.get("usage")
    value = usage.get(name) if isinstance(usage, dict) else None
    # Twelve digits are past MAX_COUNT anyway, and int() raises ValueError for thousands of them.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # Not isinstance: that would count `true` as 1.
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def first_token_margin(answer: Mapping[str, Any]) -> float | None:
    """p1 - p2 of the first token, from either API's logprobs; None where they are not there or make no sense."""
    try:
        # Chat has a list of entries for each token, completions a mapping of token to logprob. Either may hold more than the two
        # that were asked for.
        logprobs = answer["choices"][0]["logprobs"]
        if "content" in logprobs:  # chat
            logs = [entry["logprob"] for entry in logprobs["content"][0]["top_logprobs"]]
        else:  # completions
            logs = list(logprobs["top_logprobs"][0].values())
        first, *others = sorted((_probability(log) for log in logs), reverse=True)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    if not others:  # what the second would have been is known only where the first leaves it nothing
        return 1.0 if first > 1 - 1e-6 else None
    return first - others[0]


def cut(completion: Completion, stop: Sequence[str]) -> Completion:
    """The completion up to its first stop string: some servers take only some of them, or none.

    >>> cut(Completion("18\\nQuestion: and", 5, "length"), ("\\n", "Q"))
    Completion(text='18', num_tokens=5, finish_reason='stop')
    """
    # The tokens beyond the cut stay counted: they were generated, and paid for.
    ends = [at for string in stop if (at := completion.text.find(string)) >= 0]
    return Completion(completion.text[: min(ends)], completion.num_tokens, "stop") if ends else completion


def _text(choice: Any) -> str:
    """Of a choice of either API; content may be parts. Raises CompletionError where there is none."""
    if isinstance(choice, dict):
        message = choice.get("message")
        if isinstance(message, dict):
            content = message.get("content")
            # Null is an empty answer where the model did say something else: it thought until its tokens ran out, called a tool.
            if content is None and ("content" in message or {"reasoning_content", "reasoning", "tool_calls"} & message.keys()):
                return ""
        else:
            content = choice.get("text")
        if isinstance(content, str):
            return content
        if isinstance(content, list | dict):
            parts = [_part(part) for part in (content if isinstance(content, list) else [content])]
            if None not in parts:
                return "".join(part for part in parts if part is not None)
    raise CompletionError(f"a choice without text: {repr(choice)[:200]}")


def _part(part: Any) -> str | None:
    """The text of one part of a content, empty for a thought or an image; None for what is no part."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    if part.get("type", "text") in ("text", "output_text"):
        text = part.get("text")
        return text if isinstance(text, str) else None
    return "" if isinstance(part["type"], str) else None


def _finish_reason(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else None


def _probability(log: Any) -> float:
    """Raises ValueError or TypeError for what is no logarithm of a probability. -inf is one, 0."""
    # Rounding puts the logarithm of a sure token a little above 0. `not <` refuses NaN as well.
    if type(log) not in (int, float) or not log < 1e-3:
        raise ValueError(f"{log!r} is no logarithm of a probability")
    return min(1.0, math.exp(log))


def _refusal(response: httpx.Response, status: int | None, body: Any) -> CompletionError:
    error = body.get("error", body) if isinstance(body, dict) else body
    param = error.get("param") if isinstance(error, dict) else None
    # Servers that use none of the usual names are searched whole.
    words = " ".join(_sayings(error)) or _words(response)
    said = f"HTTP {status}" if status == response.status_code else f"HTTP {response.status_code} with an error"
    return CompletionError(
        f"{said} from {response.url}: {_words(response)[:500]}",
        status,
        retry_after_s(response.headers.get("retry-after", "")),
        param if isinstance(param, str) else None,
        words,
    )


def retry_after_s(header: str, now: datetime | None = None) -> float:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; 0 where it says nothing that can be read.

    >>> retry_after_s("1.5"), retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after_s("soon")
    (1.5, 0.0, 0.0)
    """
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except (ValueError, OverflowError):  # the second of a zone beyond what a timedelta holds
            return 0.0
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _sayings(error: Any, key: str = "message") -> Iterator[str]:
    """What a refusal says, without the request that some servers quote in it, which names every field."""
    if isinstance(error, str):
        if key in ("message", "msg", "param", "loc", "code", "type", "detail", "error", "reason", "title"):
            # A message may quote a prompt of any length, and patterns run over all of it.
            yield error[:2_000]
    elif isinstance(error, list):
        for each in error[:20]:
            yield from _sayings(each, key)
    elif isinstance(error, dict):
        for name, value in error.items():
            if not isinstance(value, dict) or name in ("error", "detail", "metadata"):
                yield from _sayings(value, name)


def _json_of(response: httpx.Response) -> Any:
    """None where it is no JSON. A thousand brackets in a row are a RecursionError, and UnicodeDecodeError is a ValueError."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _words(response: httpx.Response) -> str:
    """What the body says, on one line: an error that ends a job is shown as one."""
    return " ".join(response.text.split())[:4_000]
