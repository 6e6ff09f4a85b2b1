"""Several ingress replicas, one memory of conversations: each conversation sees one model, whoever gets its turns."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from gateway_fakes import FakeRouter, Fakes

from firewall_ray.config.serving import ServingConfig
from firewall_ray.store.layout import ArtifactStore
from serve_app.routing.conversations import Conversations
from serve_app.routing.decision import Decision
from serve_app.shared.client import SharedState
from serve_app.shared.replica import SharedReplica, shared_deployment

HARD, EASY = "Prove it.", "Thanks!"
WEAK, STRONG = Decision("weak", "score", 0.5, 0.3), Decision("strong", "score", 0.1, 0.3)


class Direct:
    """A shared replica in this process."""

    def __init__(self) -> None:
        self.replica = SharedReplica()

    async def ask(self, question: str, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return await getattr(self.replica, question)(*arguments)


def replicas(num: int, shared: Any, **serving: Any) -> list[Fakes]:
    """Ingress replicas, each with a memory of its own. HARD goes strong at the default fraction."""
    return [Fakes(FakeRouter({HARD: 0.1}), shared=shared, sticky=True, **serving) for _ in range(num)]


def turn(served: Fakes, *texts: str, **headers: str) -> tuple[str, str]:
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = served.post("/v1/chat/completions", {"model": "firewall", "messages": messages}, named)
    return response.headers["x-firewall-route"], response.headers["x-firewall-reason"]


def test_a_turn_at_another_replica_stays_where_the_first_replica_put_it() -> None:
    first, second, third = replicas(3, Direct())
    assert turn(first, HARD) == ("strong", "score")
    for other in (second, third):
        other.router.default_fraction = 0.0  # its own decision would be weak
    assert turn(second, HARD, "So.", EASY) == ("strong", "sticky")
    assert turn(third, HARD, "So.", EASY, "Well.", "Bye!") == ("strong", "sticky")
    assert (second.router.calls, third.router.calls) == ([], [])
    assert turn(second, HARD, "So.", "And?") == ("strong", "sticky")


def test_a_named_conversation_is_known_everywhere_by_its_name_alone() -> None:
    first, second = replicas(2, Direct())
    assert turn(first, HARD, x_firewall_conversation="a") == ("strong", "score")
    assert turn(second, EASY, x_firewall_conversation="a") == ("strong", "sticky")


def test_first_turns_that_come_to_several_replicas_at_once_agree() -> None:
    served = replicas(4, Direct())
    for i, each in enumerate(served):
        each.router.default_fraction = 0.3 * (i % 2)  # every other one decides otherwise

    async def ask() -> list[tuple[str, str]]:
        body = {"model": "firewall", "messages": [{"role": "user", "content": HARD}]}
        clients = [each.client() for each in served]
        try:
            answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for client in clients))
        finally:
            await asyncio.gather(*(client.aclose() for client in clients))
        return [(answer.headers["x-firewall-route"], answer.headers["x-firewall-reason"]) for answer in answers]

    found = asyncio.run(ask())
    assert len({route for route, _ in found}) == 1
    # Those who decided as the first did have decided; the others were overruled.
    assert {reason for _, reason in found} == {"score", "sticky"}


def test_all_turns_ask_for_the_same_replica_of_their_model_and_other_conversations_for_another() -> None:
    first, second = replicas(2, Direct())
    turn(first, HARD)
    turn(second, HARD, "So.", EASY)
    turn(first, HARD + " Now!")
    first.post("/v1/chat/completions", {"model": "large", "messages": [{"role": "user", "content": HARD}]})
    mine, others, unrouted = *first.strong.sessions[:1], *first.weak.sessions, first.strong.sessions[-1]
    assert mine is not None
    assert second.strong.sessions == [mine]
    assert others != mine
    assert unrouted is None  # a model that was asked for by its id


def test_what_a_failing_router_left_open_is_claimed_by_nobody() -> None:
    first, second = replicas(2, Direct())
    first.router.error = RuntimeError()
    assert turn(first, HARD) == ("weak", "router-failed")
    assert turn(second, HARD, "So.", EASY) == ("strong", "score")
    assert turn(first, HARD, "So.", EASY, "Well.", "Bye!") == ("strong", "sticky")


# The client ----------------------------------------------------------------------------------------------------------


class Call:
    """What a handle's `remote` returns."""

    def __init__(self, answer: Awaitable[Any]) -> None:
        self._answer = answer
        self.cancelled = False

    def __await__(self) -> Any:
        return self._answer.__await__()

    def cancel(self) -> None:
        """As Serve's own, which raises what befell a call that got no replica."""
        self.cancelled = True
        if self._answer.cr_frame is None:  # type: ignore[attr-defined]  # a coroutine that has ended
            raise RuntimeError("there is no such deployment any more")


class Handle:
    """A deployment handle around a shared replica of this process, whose calls end as `mood` says."""

    def __init__(self) -> None:
        self.memory = SharedReplica()
        self.mood: Callable[[Awaitable[Any]], Awaitable[Any]] = lambda answer: answer
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Call:
            self.calls.append(Call(self.mood(getattr(self.memory, name)(*arguments))))
            return self.calls[-1]

        return type("Method", (), {"remote": staticmethod(remote)})


async def raises(answer: Awaitable[Any]) -> Any:
    await answer
    raise RuntimeError("its replica died")


async def hangs(answer: Awaitable[Any]) -> Any:
    await answer
    await asyncio.Event().wait()


@pytest.mark.parametrize("mood", [raises, hangs])
def test_a_shared_replica_that_does_not_answer_or_is_gone_costs_no_request_its_answer(
    mood: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handle = Handle()
    shared = SharedState(handle, timeout_s=0.05)  # type: ignore[arg-type]

    async def ask() -> list[Any]:
        before = [await shared.ask("claim", b"a", STRONG), await shared.ask("recall", b"a")]
        handle.mood = mood
        during = [await shared.ask("claim", b"b", WEAK), await shared.ask("recall", b"a"), await shared.ask("tell", "i", {})]
        # The first request finds out; those after it wait for nothing, only heartbeats ask on.
        assert [call.cancelled for call in handle.calls[2:]] == [True, True]
        handle.mood = lambda answer: answer
        await shared.ask("tell", "i", {})
        return [*before, *during, await shared.ask("recall", b"a")]

    assert asyncio.run(ask()) == [STRONG, STRONG, None, None, None, STRONG]
    said = [record.message for record in caplog.records]
    assert len(said) == 2  # an outage and its end, not a line a request
    assert "gives no answer" in said[0]
    assert "answers again" in said[1]


def test_the_first_claim_holds() -> None:
    memory = Conversations()
    assert memory.claim(b"a", STRONG) == STRONG
    assert memory.claim(b"a", WEAK) == STRONG
    assert memory.recall(b"a") == STRONG


KEYS = [{"name": "ann", "sha256": "0" * 64}]
PRICES = {"weak": {"prompt": 1, "completion": 2}, "strong": {"prompt": 10, "completion": 30}}


@pytest.mark.parametrize(
    ("serving", "shares"),
    [
        ({"sticky": True, "ingress_replicas": {"min": 1, "max": 4}}, True),
        ({"api_keys": KEYS, "ingress_replicas": {"min": 1, "max": 4}}, True),
        ({"api_keys": "disabled", "ingress_replicas": {"min": 1, "max": 4}}, False),
        ({"sticky": True, "api_keys": KEYS}, False),
        ({"prices": PRICES, "spend_caps": {"all": {"day": 1}}}, True),
    ],
)
def test_nothing_is_deployed_where_there_is_nothing_to_share(serving: dict[str, Any], shares: bool) -> None:
    spending = ArtifactStore("/nowhere").spending()
    assert (shared_deployment(ServingConfig.model_validate(serving), spending) is not None) == shares
