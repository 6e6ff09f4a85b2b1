"""What a model's replica says of its engine, around a stand-in for vLLM's client: whose fault a death was, and whether it hangs."""

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.models.answers import EngineCrashed, EngineDead

# Slow: vLLM's exceptions, which it raises, take seconds to import.
pytestmark = pytest.mark.slow

VOCABULARY = 640


class Client:
    """vLLM's `AsyncLLM`, as far as the guard knows it. exit_codes: of the engine's processes, None of one that lives."""

    def __init__(self, *exit_codes: int | None) -> None:
        processes = [SimpleNamespace(exitcode=code) for code in exit_codes or (None,)]
        self.errored = False
        self.engine_core = SimpleNamespace(resources=SimpleNamespace(engine_manager=SimpleNamespace(processes=processes)))
        self.output_processor = SimpleNamespace(process_outputs=lambda outputs: outputs)
        self.input_processor = SimpleNamespace(process_inputs=lambda request: request)
        self.model_config = SimpleNamespace(get_vocab_size=lambda: VOCABULARY)


def guard_of(client: Any, stall_s: float = 60) -> Any:
    from serve_app.models.engine import EngineGuard

    return EngineGuard(client, stall_s)


def request(prompt: list[int] | None = None, bad_words: list[list[int]] | None = None, images: Any = None) -> Any:
    params = SimpleNamespace(bad_words_token_ids=bad_words)
    return SimpleNamespace(prompt_token_ids=prompt, mm_features=images, sampling_params=params)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (request([VOCABULARY]), "prompt"),
        (request([1, VOCABULARY + 1, 2]), "prompt"),
        (request([1], [[1], [VOCABULARY]]), "bad_words"),
        (request([1], [[1]], images=["an image"]), None),
        (request([VOCABULARY + 7], images=["an image"]), None),  # stands for the image
        (request([0, VOCABULARY - 1]), None),
        (request(None), None),
        (request([]), None),
    ],
)
def test_a_token_id_past_the_vocabulary_never_reaches_the_engine(asked: Any, param: str | None) -> None:
    from serve_app.models.replica import CLIENT_ERRORS

    client = Client()
    guard_of(client)
    if param is None:
        assert client.input_processor.process_inputs(asked) is asked
    else:
        with pytest.raises(CLIENT_ERRORS) as refused:
            client.input_processor.process_inputs(asked)
        assert refused.value.parameter == param  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("exit_codes", "expected"),
    [
        ((-signal.SIGKILL,), EngineDead),
        ((-signal.SIGTERM,), EngineDead),
        ((1,), EngineCrashed),
        ((-signal.SIGSEGV,), EngineCrashed),
        ((-signal.SIGABRT,), EngineCrashed),
        ((None,), EngineCrashed),  # it said that it dies, and is not gone yet
    ],
)
def test_a_request_is_blamed_for_a_crash_and_not_for_a_kill(exit_codes: Any, expected: type[Exception]) -> None:
    client = Client(*exit_codes)
    guard = guard_of(client)
    guard.require()
    guard.blame()  # whatever went wrong, the engine lives
    client.errored = True
    with pytest.raises(expected):
        guard.blame()
    with pytest.raises(EngineDead):  # whoever comes later has not killed it
        guard.require()


def test_an_engine_that_says_nothing_hangs_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app.models import engine

    monkeypatch.setattr(engine, "PERIOD_S", 0.01)

    async def scenario() -> None:
        client = Client()
        guard = guard_of(client, stall_s=0.2)

        async def wait(event: asyncio.Event) -> None:
            async with guard.waiting():
                await event.wait()

        answered = asyncio.Event()
        waiter = asyncio.create_task(wait(answered))
        for _ in range(8):  # for longer than that: it answers others
            await asyncio.sleep(0.05)
            client.output_processor.process_outputs([])
        assert not waiter.done()
        answered.set()
        await waiter
        await asyncio.sleep(0.3)  # silent, but nobody waits
        guard.require()
        guard.check_health()
        outcomes = await asyncio.gather(*(wait(asyncio.Event()) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineDead] * 3
        for asked in (guard.require, guard.check_health):
            with pytest.raises(EngineDead):
                asked()
        client.output_processor.process_outputs([])  # it was only slow
        guard.require()
        guard.check_health()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_timeout_of_the_engines_own_is_no_hang() -> None:
    async def scenario() -> None:
        async with guard_of(Client()).waiting():
            raise TimeoutError("a regex took too long")

    with pytest.raises(TimeoutError, match="regex"):
        asyncio.run(scenario())
