"""Clients that ask the running application all the time, and what each of their requests came to."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import openai
from running_app import Served, wait_until

LONG = {"max_tokens": 64, "temperature": 0, "extra_body": {"min_tokens": 64}}  # beside the longest prompt, half of the models' 128


@dataclass
class Outcome:
    """error: what the client raised, before its answer or, for a stream, in the middle of it; text: what had come by then."""

    prompt: str
    streams: bool
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    error: Exception | None = None

    @property
    def route(self) -> str | None:
        return self.headers.get("x-firewall-route")

    @property
    def reason(self) -> str | None:
        return self.headers.get("x-firewall-reason")

    @property
    def fallback(self) -> str | None:
        return self.headers.get("x-firewall-fallback")

    @property
    def broke(self) -> bool:
        """In the middle of its stream."""
        return bool(self.headers) and self.error is not None


def ask(served: Served, model: str, prompt: str, *, streams: bool, **options: Any) -> Outcome:
    """One completion."""
    outcome = Outcome(prompt, streams)
    create = served.client.completions.with_raw_response.create
    try:
        response = create(model=model, prompt=prompt, stream=streams, **{**LONG, **options})
        outcome.headers = dict(response.headers)
        if streams:
            for chunk in response.parse():
                outcome.text += chunk.choices[0].text
        else:
            outcome.text = response.parse().choices[0].text
    except (openai.OpenAIError, OSError) as e:
        outcome.error = e
    return outcome


class Load:
    """num_clients threads, half of which stream, each with one request at a time. Use: `with Load(...) as load`."""

    def __init__(self, served: Served, model: str, prompts: Sequence[str], num_clients: int = 8) -> None:
        self._served, self._model, self._prompts = served, model, prompts
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(i,)) for i in range(num_clients)]
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int, what: str, **expected: Any) -> None:
        """Until `count` more requests came to an outcome with these attributes, without an error."""
        start = len(self.outcomes)

        def enough() -> bool:
            new = [each for each in self.outcomes[start:] if each.error is None]
            return sum(all(getattr(each, name) == value for name, value in expected.items()) for each in new) >= count

        wait_until(enough, what)

    def _client(self, number: int) -> None:
        i = number
        while not self._over.is_set():
            prompt = self._prompts[i % len(self._prompts)]
            self.outcomes.append(ask(self._served, self._model, prompt, streams=number % 2 == 0))
            i += len(self._threads) + 1
            time.sleep(0.3)  # leave the machine some time for what comes up again
