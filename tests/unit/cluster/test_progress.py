"""What a person sees of a stage: how far, how fast, what its actors do, when it ends; in a log a line only where one is new."""

import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from firewall_ray.cluster import display
from firewall_ray.cluster.display import Bars, Lines
from firewall_ray.cluster.meter import ActorState, Meter
from firewall_ray.cluster.progress import ProgressCounter
from firewall_ray.engines import report as reports
from firewall_ray.engines.report import EngineReport


def state(text: str, since_s: float = 1.0, told_s: float = 0.0, **levels: int) -> ActorState:
    return ActorState(text, since_s, told_s, levels)


@pytest.mark.parametrize(("rows", "completed"), [(0, 40), (59, 99), (60, 100), (75, 100)])
def test_rows_that_are_counted_twice_never_exceed_the_total(rows: int, completed: int) -> None:
    meter = Meter(100, done=40)
    meter.update(0.0, {"rows": rows, "work": rows + 0.5}, {})
    assert meter.rows == completed
    assert completed <= meter.work <= 100


def test_rates_begin_with_what_is_done_first_and_stand_still_after_the_last() -> None:
    meter = Meter(50)
    meter.update(0.0, {}, {})
    assert meter.words() == "0 of 50 rows, starting"
    meter.update(100.0, {"rows": 10, "tokens": 100}, {})
    meter.update(110.0, {"rows": 30, "tokens": 400, "errors": 2}, {})
    # 20 rows and 300 tokens in 10 s; the 20 that are left take 10 s more
    assert meter.words() == "30 of 50 rows, about 10 s left for about 300 tokens, 2.0 rows/s, 30 tokens/s, 2 errors"
    meter.update(120.0, {"rows": 50, "tokens": 500, "errors": 2}, {"a": state("first batch")})
    whole = meter.words()  # 40 rows and 400 tokens in 20 s
    assert whole == "50 of 50 rows, 2.0 rows/s, 20 tokens/s, 2 errors"
    meter.update(900.0, {"rows": 60, "tokens": 900}, {})
    assert meter.words().startswith("50 of 50 rows, 2.0 rows/s, 20 tokens/s")


def test_the_time_that_is_left_is_known_before_the_first_row_is_whole() -> None:
    meter = Meter(170)
    meter.update(0.0, {"work": 1.0, "tokens": 50}, {})
    meter.update(60.0, {"work": 4.0, "tokens": 9_650}, {"a": state("first batch", running=96, waiting=40)})
    # 3 rows' worth in 60 s, 166 are left: 3,320 s
    assert meter.words() == (
        "0 of 170 rows (2% of the requests answered), about 55 minutes left for about 0.5 M tokens, 160 tokens/s, "
        "96 running, 40 waiting, 1 actor: first batch"
    )


def test_no_time_is_named_while_fewer_requests_were_answered_than_run() -> None:
    meter = Meter(170)
    running = {"a": state("first batch", running=96)}
    meter.update(0.0, {"work": 0.5, "requests": 5}, running)
    meter.update(60.0, {"work": 4.0, "requests": 36}, running)  # the rate would say 47 minutes, when all 96 are near their end
    assert "left" not in meter.words()
    meter.update(90.0, {"work": 12.0, "requests": 108}, running)
    assert "about 21 minutes left" in meter.words()  # 158 rows at 11.5 in 90 s


def test_rates_are_of_the_last_minutes_and_not_of_all_hours() -> None:
    meter = Meter(100_000)
    for minute in range(120):  # 1 row/s for an hour, then a second actor: 2 rows/s
        meter.update(60.0 * minute, {"rows": 60 * minute + 60 * max(0, minute - 60) + 1}, {})
    assert ", 2.0 rows/s" in meter.words()


def test_actors_are_shown_by_what_they_do_and_since_when() -> None:
    meter = Meter(10)
    loading = {"a": state("loading the model", 200), "b": state("loading the model", 10), "c": state("sampling", 9)}
    meter.update(0.0, {}, loading)
    assert meter.words() == "0 of 10 rows, 2 actors: loading the model for 3 minutes"


def test_requests_of_an_actor_that_has_died_are_not_shown_for_ever() -> None:
    meter = Meter(10)
    meter.update(0.0, {}, {"a": state("sampling", told_s=31, running=5), "b": state("sampling", told_s=1, running=3)})
    assert "3 running" in meter.words()


def test_the_counter_keeps_since_when_an_actor_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 4.0, 9.0, 10.0, 12.0])
    monkeypatch.setattr("firewall_ray.cluster.progress.time.monotonic", lambda: next(now))
    counter = ProgressCounter()
    counter.state("weak", "a", "first batch")
    counter.state("weak", "a", "first batch", {"running": 3})
    counter.state("weak", "b", "loading the model")
    counter.say("a line", logging.WARNING)
    _, states, lines = counter.read()
    assert states["weak"] == {
        "a": ActorState("first batch", 10.0, 6.0, {"running": 3}),
        "b": ActorState("loading the model", 1.0, 1.0, {}),
    }
    assert lines == [(logging.WARNING, "a line")]
    counter.state("weak", "b", "")
    monkeypatch.undo()
    _, states, lines = counter.read()
    assert (set(states["weak"]), lines) == ({"a"}, [])


# In a log file -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1_000.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    yield now
    monkeypatch.undo()


def lines_of(
    clock: list[float], caplog: pytest.LogCaptureFixture, seconds: int, sums_at: Any, states_at: Any = lambda s: {}
) -> list[str]:
    """What `Lines` says over so many seconds, shown once a second."""
    caplog.set_level(logging.INFO, logger="firewall_ray.cluster.progress")
    meter = Meter(10_000)
    lines = Lines("sample")
    for second in range(seconds + 1):
        clock[0] = 1_000.0 + second
        meter.update(clock[0], sums_at(second), states_at(second))
        lines.show({"weak": meter}, last=second == seconds)
    return [record.getMessage() for record in caplog.records]


def test_a_log_file_has_no_line_twice_where_nothing_changes(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """Eight minutes in which a model loads: once that it does, once that it still does; not every 15 seconds."""
    states = {"a": state("loading the model")}
    said = lines_of(clock, caplog, 480, lambda s: {}, lambda s: states if s >= 3 else {})
    assert len(said) == 2
    assert said[0] == "sample weak: 0 of 10,000 rows, 1 actor: loading the model"
    assert said[1].startswith("sample weak: nothing new for 5 minutes (since ")


def test_a_log_file_has_a_line_when_actors_begin_something_else(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    phases = ["loading the model", "compiling", "warming up", "first batch"]
    said = lines_of(clock, caplog, 79, lambda s: {}, lambda s: {"a": state(phases[s // 20])})
    assert [phase for phase in phases if any(phase in line for line in said)] == phases
    assert len(said) == 4


def test_lines_of_a_log_file_come_slower_as_the_hours_go_by(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    said = lines_of(clock, caplog, 4 * 3_600, lambda s: {"rows": s // 2})
    assert 60 < len(said) < 110  # twenty in the first five minutes; every 15 seconds they would be 960
    assert "7,200 of 10,000 rows, about 1.6 hours left" in said[-1] or "about 93 minutes" in said[-1]


# On a terminal ------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar_a_key_in_one_display() -> None:
    out = io.StringIO()
    bars = Bars("sample", Console(file=out, force_terminal=True, width=150))
    meters = {"weak": Meter(10), "strong": Meter(20)}
    meters["weak"].update(0.0, {"rows": 4}, {})
    meters["strong"].update(0.0, {}, {"a": state("compiling")})
    bars.show(meters, last=True)
    bars.close()
    shown = out.getvalue()
    for words in ("sample weak", "4 of 10 rows", "sample strong", "0 of 20 rows, 1 actor: compiling"):
        assert words in shown


# What an actor tells ----------------------------------------------------------------------------------------------


class Remote:
    def __init__(self, calls: list[tuple[Any, ...]], name: str) -> None:
        self._calls = calls
        self._name = name

    def remote(self, *arguments: Any) -> None:
        self._calls.append((self._name, *arguments))


class FakeCounter:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.add, self.state, self.say = (Remote(self.calls, name) for name in ("add", "state", "say"))


def test_an_actor_tells_at_most_once_a_second_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(reports.time, "monotonic", lambda: now[0])
    counter = FakeCounter()
    report = EngineReport("weak", counter)
    for step in range(1_000):
        now[0] = step / 100
        report.add({"tokens": 2, "work": 0.5})
    report.flush()
    monkeypatch.undo()
    told = [call[2] for call in counter.calls if call[0] == "add"]
    assert len(told) <= 11
    assert sum(amounts["tokens"] for amounts in told) == 2_000
    assert sum(amounts["work"] for amounts in told) == 500


def test_an_actor_tells_a_state_once() -> None:
    counter = FakeCounter()
    report = EngineReport("weak", counter)
    for _ in range(3):
        report.state("loading the model")
    report.state("first batch")
    report.warn("a line")
    assert [call[3] for call in counter.calls if call[0] == "state"] == ["loading the model", "first batch"]
    assert counter.calls[-1] == ("say", "a line", logging.WARNING)
