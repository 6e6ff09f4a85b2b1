"""What breaks under load, for real: replicas and engines killed or stopped while clients ask. Each test leaves it whole.

Greedy answers are known beforehand, so a spliced one, which began at one model and ended at the other, would show.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
from load import Load, Outcome, ask
from running_app import Served, processes_of, wait_until

from firewall_ray.config.serving import Route

pytestmark = pytest.mark.slow

Answers = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def prompts(served: Served) -> list[str]:
    return served.test_prompts[:20]


@pytest.fixture(scope="module")
def answers(served: Served, prompts: list[str]) -> Answers:
    """What each model says to each prompt, by (route, prompt)."""
    outcomes = {(model, prompt): ask(served, model, prompt, streams=False) for model in ("weak", "strong") for prompt in prompts}
    assert all(outcome.error is None for outcome in outcomes.values())
    assert all(outcomes["weak", prompt].text != outcomes["strong", prompt].text for prompt in prompts)
    return {key: outcome.text for key, outcome in outcomes.items()}


@pytest.fixture(autouse=True)
def _whole_again(served: Served) -> Iterator[None]:
    yield
    wait_until(served.is_ready, "router and both models are back")


def assert_no_answer_was_lost_or_spliced(outcomes: list[Outcome], answers: Answers) -> None:
    """Every client has the whole answer of one model; or of a stream its beginning and an error."""
    for outcome in outcomes:
        assert outcome.headers, outcome.error
        assert outcome.route is not None
        expected = answers[outcome.route, outcome.prompt]
        if outcome.error is None:
            assert outcome.text == expected
        else:
            assert outcome.streams
            assert isinstance(outcome.error, openai.APIError)
            assert "failed in the middle" in str(outcome.error)
            assert expected.startswith(outcome.text)


def model_process(route: Route) -> psutil.Process:
    (process,) = processes_of(f"ModelServer:{route}")
    return process


def engine_process(route: Route) -> psutil.Process:
    (engine,) = [each for each in model_process(route).children(recursive=True) if "EngineCore" in each.name()]
    return engine


def has_torch(process: psutil.Process) -> bool:
    return any("torch" in each.path for each in process.memory_maps())


@pytest.mark.parametrize("victim", [model_process, engine_process])
def test_killing_the_strong_model_under_load_costs_no_answer(
    served: Served, prompts: list[str], answers: Answers, victim: object
) -> None:
    (ingress,) = processes_of("Ingress")
    # Ray gives an actor a process that may have worked for other tests before, and have imported it for them.
    had_torch = has_torch(ingress)
    with Load(served, "firewall-0.5", prompts) as load:
        load.wait_for(5, "the strong model answers", route="strong")
        victim("strong").kill()
        load.wait_for(20, "the weak model answers for the dead one", route="weak", fallback="dead")
        load.wait_for(5, "the strong model answers again", route="strong")
    assert_no_answer_was_lost_or_spliced(load.outcomes, answers)
    fallen_back = [outcome for outcome in load.outcomes if outcome.fallback]
    assert {outcome.headers["x-firewall-decided"] for outcome in fallen_back} == {"strong"}
    assert {outcome.route for outcome in fallen_back} == {"weak"}
    # To read an exception of vLLM's it would have imported it, and torch, in its event loop.
    assert had_torch or not has_torch(ingress)


def test_killing_the_router_under_load_costs_no_answer(served: Served, prompts: list[str], answers: Answers) -> None:
    with Load(served, "firewall-0.5", prompts) as load:
        load.wait_for(5, "the router decides", reason="score")
        (router,) = processes_of("Router")
        router.kill()
        load.wait_for(1, "a request fails open", reason="router-timeout")
        load.wait_for(20, "the router decides again", reason="score")
    assert_no_answer_was_lost_or_spliced(load.outcomes, answers)
    assert not any(outcome.broke for outcome in load.outcomes)
    assert {outcome.reason for outcome in load.outcomes} <= {"score", "router-timeout", "router-failed"}
    assert {outcome.route for outcome in load.outcomes if outcome.reason != "score"} == {"strong"}  # serving.fail_open


def test_a_model_that_hangs_is_waited_for_as_long_as_configured_and_no_longer(
    served: Served, prompts: list[str], answers: Answers
) -> None:
    process = model_process("strong")
    process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as clients:
            asked = [clients.submit(ask, served, "firewall-1", prompts[0], streams=streams) for streams in (False, True)]
            outcomes = [each.result() for each in asked]
    finally:
        process.send_signal(signal.SIGCONT)
    assert_no_answer_was_lost_or_spliced(outcomes, answers)
    assert [(each.route, each.fallback, each.error) for each in outcomes] == [("weak", "timeout", None)] * 2
    wait_until(lambda: ask(served, "firewall-1", prompts[0], streams=False).route == "strong", "the strong model answers again")
    assert process.is_running()
