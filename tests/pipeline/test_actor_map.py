"""A pool of actors that die, hang, refuse and are told to stop, on a real Ray; the actors do next to nothing."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs as pafs
from ray import cloudpickle

from firewall_ray.cluster.actor_map import ActorMap, run_actor_maps
from firewall_ray.cluster.pool import Pool
from firewall_ray.errors import EngineDied, FirewallRayError, ModelError, SystemFailure
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import LocalRows

pytestmark = pytest.mark.slow

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import a test

ROWS = pa.schema([pa.field("query_id", pa.string(), nullable=False), pa.field("prompt", pa.string())])
OUTPUT = pa.schema(
    [pa.field("query_id", pa.string(), nullable=False), pa.field("text", pa.string()), pa.field("error", pa.string())]
)


class Echo:
    """Its rows' prompts. "kill": its process dies. "once FILE": it dies of it where there is no such file. "wait": it hangs."""

    def __init__(self, progress: Any, fails_once: str | None = None, refuses: str | None = None, always_dies: bool = False) -> None:
        if refuses is not None:
            raise ModelError(refuses)
        if always_dies:
            raise MemoryError("141 GiB wanted, 80 there")
        if fails_once is not None and not Path(fails_once).exists():
            Path(fails_once).touch()
            raise OSError("the hub did not answer")

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        prompts = batch["prompt"].to_pylist()
        await asyncio.sleep(0.01)
        for prompt in prompts:
            word, _, path = prompt.partition(" ")
            if word == "kill" or (word == "once" and not Path(path).exists()):
                if path:
                    Path(path).touch()
                os._exit(1)
            if word == "wait":
                await asyncio.sleep(3_600)
            if word == "outage":
                raise EngineDied("the server does not answer")
            if word == "bug":
                raise TypeError("a bug")
        errors = pa.array([prompt if prompt.startswith("HTTP") else None for prompt in prompts], pa.string())
        yield pa.table({"query_id": batch["query_id"], "text": batch["prompt"], "error": errors}, schema=OUTPUT)


def error_rows(batch: pa.Table, why: str) -> pa.Table:
    size = len(batch)
    return pa.table({"query_id": batch["query_id"], "text": pa.nulls(size, pa.string()), "error": [why] * size}, schema=OUTPUT)


def a_map(folder: Path, prompts: dict[str, str], *, key: str = "weak", max_restarts: int = 3, **fields: Any) -> ActorMap:
    rows = LocalRows([pa.record_batch([list(prompts), list(prompts.values())], schema=ROWS)], ROWS)
    output = Dataset("samples", str(folder / key), pafs.LocalFileSystem(), OUTPUT, "python jobs/sample.py")
    output.begin({}, keep_files=True)
    arguments = fields.pop("arguments", {})
    pool = Pool(1, fields.pop("size", 1), batch_rows=4, batches_in_flight=2, max_restarts=max_restarts, options={"num_cpus": 0.1})
    return ActorMap(key, output, rows, Echo, arguments, pool, f"the engine of {key}", error_rows, **fields)


def prompts(number: int, **others: str) -> dict[str, str]:
    return {f"q{i}": f"text {i}" for i in range(number)} | others


def texts(each: ActorMap) -> dict[str, str | None]:
    return {row["query_id"]: row["text"] for row in each.output.read().to_pylist()}


def errors(each: ActorMap) -> dict[str, str]:
    return {row["query_id"]: row["error"] for row in each.output.read().to_pylist() if row["error"]}


def test_every_row_comes_once_and_into_one_file(ray_cluster: None, tmp_path: Path) -> None:
    each = a_map(tmp_path, prompts(50), size=2)
    assert each.num_missing() == 50
    run_actor_maps("sample", [each])
    assert texts(each) == prompts(50)
    assert len(each.output.files()) == 1
    assert each.num_missing() == 0


def test_a_row_that_kills_its_engine_twice_is_set_aside_and_the_others_are_done(ray_cluster: None, tmp_path: Path) -> None:
    each = a_map(tmp_path, prompts(20, bad="kill"), max_restarts=1)
    run_actor_maps("sample", [each])
    assert list(errors(each)) == ["bad"]
    assert "died of it twice" in errors(each)["bad"]
    assert texts(each) == prompts(20) | {"bad": None}


def test_an_engine_that_dies_once_costs_no_row(ray_cluster: None, tmp_path: Path) -> None:
    each = a_map(tmp_path, prompts(20, q7=f"once {tmp_path / 'seen'}"))
    run_actor_maps("sample", [each])
    assert errors(each) == {}
    assert len(texts(each)) == 20


def test_a_constructor_that_fails_once_ends_nothing(ray_cluster: None, tmp_path: Path) -> None:
    each = a_map(tmp_path, prompts(8), arguments={"fails_once": str(tmp_path / "failed")})
    run_actor_maps("sample", [each])
    assert texts(each) == prompts(8)


def test_a_constructor_that_always_fails_ends_the_map_with_its_reason(ray_cluster: None, tmp_path: Path) -> None:
    each = a_map(tmp_path, prompts(8), arguments={"always_dies": True}, max_restarts=1)
    with pytest.raises(EngineDied, match=r"the engine of weak: .*141 GiB wanted"):
        run_actor_maps("sample", [each])


def test_what_the_caller_has_to_change_is_raised_as_it_is(ray_cluster: None, tmp_path: Path) -> None:
    each = a_map(tmp_path, prompts(8), arguments={"refuses": "no model at 'x'"})
    with pytest.raises(ModelError, match="no model at 'x'"):
        run_actor_maps("sample", [each])


def test_a_bug_is_raised_at_once_and_what_was_done_is_kept(ray_cluster: None, tmp_path: Path) -> None:
    each = a_map(tmp_path, prompts(40, bad="bug"))
    with pytest.raises(SystemFailure, match=r"TypeError: a bug"):
        run_actor_maps("sample", [each])
    kept = 41 - each.num_missing()
    assert 0 < kept < 41


def test_a_failed_model_ends_the_other_within_seconds(ray_cluster: None, tmp_path: Path) -> None:
    hanging = a_map(tmp_path, prompts(4, slow="wait"), key="strong")
    failing = a_map(tmp_path, prompts(4, bad="outage"), key="weak")
    failed_at: list[float] = []
    run = failing.run

    def timed(progress: Any) -> None:
        try:
            run(progress)
        finally:
            failed_at.append(time.monotonic())

    failing.run = timed  # type: ignore[method-assign]
    with pytest.raises(EngineDied, match="does not answer"):
        run_actor_maps("sample", [hanging, failing])
    assert time.monotonic() - failed_at[0] < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sample ")]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_stops_within_seconds(ray_cluster: None, tmp_path: Path, stop: signal.Signals) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise SystemExit(143) if number == signal.SIGTERM else KeyboardInterrupt

    hanging = [a_map(tmp_path, prompts(4, slow="wait"), key=key) for key in ("weak", "strong")]
    before = signal.signal(stop, interrupt)
    sent: list[float] = []

    def send() -> None:
        time.sleep(8)
        sent.append(time.monotonic())
        os.kill(os.getpid(), stop)

    threading.Thread(target=send).start()
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run_actor_maps("sample", hanging)
    finally:
        signal.signal(stop, before)
    assert time.monotonic() - sent[0] < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sample ")]


def test_retry_errors_makes_only_those_again_and_more_rows_only_the_new_ones(ray_cluster: None, tmp_path: Path) -> None:
    first = a_map(tmp_path, prompts(6, q2="HTTP 500"))
    run_actor_maps("sample", [first])
    assert errors(first) == {"q2": "HTTP 500"}

    again = a_map(tmp_path, {key: f"new {key}" for key in prompts(8)}, retry_errors=True)
    assert again.num_missing() == 3
    run_actor_maps("sample", [again])
    assert texts(again) == prompts(6) | {"q2": "new q2", "q6": "new q6", "q7": "new q7"}
    assert errors(again) == {}


def test_a_row_that_kills_and_cannot_be_an_error_row_is_named(ray_cluster: None, tmp_path: Path) -> None:
    each = a_map(tmp_path, prompts(6, bad="kill"))
    each.error_rows = None
    with pytest.raises(FirewallRayError, match="query 'bad'"):
        run_actor_maps("score", [each])
