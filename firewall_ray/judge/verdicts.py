"""A judge's answer -> its verdict, by a rule that never guesses.

JSON objects with a `verdict` are looked for anywhere in the answer, in prose or a code fence; where there are several, they must
agree, since a judge that quotes the answer before it may quote a verdict too. Without one the last line may be the bare word. All
else is None.
"""

import json
import re
from collections.abc import Iterator, Sequence

# What models write for the words that they were given; each can mean one thing only.
SYNONYMS = {"correct": "right", "incorrect": "wrong"}
MAX_CHARS = 20_000  # from the end: a verdict comes last, and each brace of a text is tried as the beginning of JSON

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_DECODER = json.JSONDecoder()


def read_verdict(text: str, words: Sequence[str]) -> str | None:
    """One of `words`, None where the answer gives none or several.

    >>> words = ("right", "wrong", "no_answer")
    >>> [read_verdict(text, words) for text in ('So: {"verdict": "Wrong"}', "The sum is 3.\\n**right**", "It looks right to me.")]
    ['wrong', 'right', None]
    """
    # A thought may try out verdicts. One without an end was cut off, so that nothing comes after it.
    text = _THOUGHT.sub("", text)[-MAX_CHARS:]
    if re.search(r"<think(ing)?>", text, re.IGNORECASE):
        return None
    # Reasoning models whose chat format opens the thought itself end it only.
    text = re.split(r"</think(?:ing)?>", text, flags=re.IGNORECASE)[-1]
    found = list(_json_verdicts(text))
    if not found:
        lines = text.strip().splitlines()
        found = [re.sub(r"^[\s*_#>-]*verdict[\s*_:=-]*", "", lines[-1], flags=re.IGNORECASE)] if lines else []
    said = {_word(each, words) for each in found}
    return said.pop() if len(said) == 1 else None


def _json_verdicts(text: str) -> Iterator[object]:
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if isinstance(value, dict) and "verdict" in value:
            yield value["verdict"]


def _word(said: object, words: Sequence[str]) -> str | None:
    if not isinstance(said, str):
        return None
    word = re.sub(r"[\s-]+", "_", said.strip(" \t\n*_`'\".!").lower())
    word = SYNONYMS.get(word, word)
    return word if word in words else None
