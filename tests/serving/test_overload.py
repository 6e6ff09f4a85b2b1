"""Ten times as many clients as the application takes, and clients that leave: for real."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest
from load import LONG, ask
from running_app import Served, num_ongoing, processes_of, wait_until

pytestmark = pytest.mark.slow

MAX_IN_FLIGHT = 32  # of the application that runs
SECONDS = 30
BODY = {"max_tokens": LONG["max_tokens"], "temperature": 0, **LONG["extra_body"]}


@dataclass
class Tally:
    """What clients were answered, and how long it took, in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)


async def client(url: str, prompts: list[str], until: float, tally: Tally) -> None:
    """Asks again at once when it was served, and after Retry-After when it was refused."""
    i = 0
    async with httpx.AsyncClient(timeout=120) as session:
        while (began := time.monotonic()) < until:
            body = {"model": "firewall-0.5", "prompt": prompts[i % len(prompts)], **BODY}
            i += 1
            try:
                response = await session.post(f"{url}/v1/completions", json=body)
            except httpx.HTTPError as e:
                tally.problems.append(repr(e))
                continue
            tally.statuses[response.status_code] += 1
            if response.status_code != 200:
                tally.refused_s.append(time.monotonic() - began)
                tally.problems += problems_of_refusal(response)
                await asyncio.sleep(float(response.headers.get("retry-after", "1")))


def problems_of_refusal(response: httpx.Response) -> list[str]:
    """What is not as OpenAI's clients expect it."""
    if not response.headers.get("retry-after", "").isdecimal():
        return [f"{response.status_code} without Retry-After: {response.text[:200]}"]
    kind = {429: "rate_limit_error", 503: "server_error"}.get(response.status_code)
    try:
        error = response.json()["error"]
        return [] if error.keys() == {"message", "type", "param", "code"} and error["type"] == kind else [response.text[:200]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{response.status_code}: {response.text[:200]}"]


def loaded(served: Served, num_clients: int, seconds: float) -> Tally:
    """That many clients for so long."""
    tally = Tally()

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(served.url, served.test_prompts[n:], until, tally) for n in range(num_clients)))

    asyncio.run(run())
    return tally


def resident_mib() -> dict[str, float]:
    """Of the processes that every request passes."""
    processes = {"Ingress": processes_of("Ingress")[0], "Router": processes_of("Router")[0]}
    processes |= {"proxy": next(p for p in psutil.Process().children(recursive=True) if "ProxyActor" in p.cmdline()[0])}
    return {name: process.memory_info().rss / 2**20 for name, process in processes.items()}


def test_ten_times_the_load_is_refused_politely_and_the_rest_is_served_as_before(served: Served) -> None:
    normal = loaded(served, 8, 8)
    assert normal.statuses.keys() == {200}
    before = resident_mib()
    overload = loaded(served, 10 * MAX_IN_FLIGHT, SECONDS)
    began = time.monotonic()
    assert ask(served, "firewall", served.test_prompts[0], streams=False).error is None
    again_s = time.monotonic() - began
    growth = {name: mib - before[name] for name, mib in resident_mib().items()}

    served_share = (overload.statuses[200] / SECONDS) / (normal.statuses[200] / 8)
    slowest = sorted(overload.refused_s)
    measured = (
        f"{dict(overload.statuses)}; served at {served_share:.2f} of the normal {normal.statuses[200] / 8:.0f}/s; "
        f"refusals p50 {slowest[len(slowest) // 2]:.2f} s, p99 {slowest[len(slowest) * 99 // 100]:.2f} s; "
        f"normal again after {again_s:.2f} s; memory grew by {growth} MiB"
    )
    print(measured)  # noqa: T201  # for `pytest -rA`: how fast is no matter of right or wrong here
    assert overload.problems == []
    assert {200, 429} <= overload.statuses.keys() <= {200, 429, 503}
    assert served_share > 0.1
    assert again_s < 30
    assert all(mib < 200 for mib in growth.values())


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_place_and_the_model(served: Served, streams: bool) -> None:
    # As many answers of 90 tokens as a request may ask for, four at a time: longer than anything here waits.
    body: dict[str, Any] = {"model": "weak", "prompt": "x", "n": 256, "stream": streams, **BODY, "temperature": 1}
    (worker,) = [p for p in processes_of("ModelServer:weak")[0].children(recursive=True) if p.name() == "VLLM::Worker"]
    url = f"{served.url}/v1/completions"
    if streams:
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            assert (response.status_code, bool(next(response.iter_raw()))) == (200, True)
            wait_until(lambda: num_ongoing("ModelServer:weak") == 1, "the replica is at work", timeout_s=15)
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=httpx.Timeout(60, read=3))
    wait_until(lambda: num_ongoing("ModelServer:weak") == 0, "the replica works on nothing", timeout_s=15)
    wait_until(lambda: worker.cpu_percent(interval=1) < 20, "the engine works on nothing", timeout_s=15)


def test_more_clients_that_leave_than_there_are_places_leave_none_taken(served: Served) -> None:
    body = {"model": "weak", "prompt": "x", "stream": True, **BODY}
    for _ in range(MAX_IN_FLIGHT + 1):
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as response:
            assert response.status_code == 200
            next(response.iter_raw())
    assert ask(served, "weak", "x", streams=False).error is None
