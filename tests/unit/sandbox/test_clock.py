"""A program's time, on a clock that the test moves."""

import os
import signal
import time

import pytest

from firewall_ray.sandbox.clock import MAX_STRETCH, Clock, longest


class Machine:
    """Wall and CPU seconds, and the signals that were sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.cpu = 100.0, 0.0
        self.signals: list[tuple[int, int]] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.wall)
        monkeypatch.setattr(time, "clock_gettime", lambda clock: self.cpu)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.signals.append((pid, number)))

    def pass_time(self, wall: float, cpu: float) -> None:
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_on_an_idle_machine_the_alarm_comes_at_the_timeout_and_the_end_a_second_later(machine: Machine) -> None:
    clock = Clock(7, 3.0)
    assert clock.seconds_left() == pytest.approx(3.0)
    machine.pass_time(3.0, cpu=3.0)
    assert clock.seconds_left() == pytest.approx(1.0)
    assert machine.signals == [(7, signal.SIGALRM)]
    machine.pass_time(0.5, cpu=0.5)
    assert clock.seconds_left() == pytest.approx(0.5)
    machine.pass_time(0.5, cpu=0.5)
    assert clock.seconds_left() is None
    assert len(machine.signals) == 1


def test_a_program_that_sleeps_gets_no_more_than_the_timeout(machine: Machine) -> None:
    clock = Clock(7, 3.0)
    machine.pass_time(3.0, cpu=0.02)  # starting took 20 ms, 0.7% of the time
    clock.seconds_left()
    assert machine.signals == [(7, signal.SIGALRM)]


def test_a_program_that_computes_on_a_busy_machine_gets_the_time_it_missed(machine: Machine) -> None:
    clock = Clock(7, 3.0)
    machine.pass_time(3.0, cpu=1.0)  # a third of a core
    assert clock.seconds_left() == pytest.approx(2.0)
    machine.pass_time(2.0, cpu=1.5)
    assert clock.seconds_left() == pytest.approx(0.5)
    assert machine.signals == []
    machine.pass_time(0.5, cpu=0.5)  # 3.0 s of CPU in 5.5 s
    clock.seconds_left()
    assert len(machine.signals) == 1


def test_a_program_that_computes_and_then_sleeps_is_stopped_at_the_next_look(machine: Machine) -> None:
    clock = Clock(7, 3.0)
    machine.pass_time(3.0, cpu=1.0)
    assert clock.seconds_left() == pytest.approx(2.0)
    machine.pass_time(2.0, cpu=0.0)
    clock.seconds_left()
    assert len(machine.signals) == 1


def test_no_program_outlasts_the_longest_time(machine: Machine) -> None:
    clock, started = Clock(7, 3.0), machine.wall
    while (left := clock.seconds_left()) is not None:
        machine.pass_time(left, cpu=0.02 * left)  # 2% of a core
    assert machine.wall - started == pytest.approx(longest(3.0)) == pytest.approx(MAX_STRETCH * 3.0 + 1.0)


def test_a_process_that_is_gone_gets_no_more_time(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(clock: int) -> float:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(time, "clock_gettime", gone)
    clock = Clock(7, 3.0)
    machine.pass_time(3.0, cpu=0.0)
    assert clock.seconds_left() == pytest.approx(1.0)


def test_the_cpu_clock_of_another_process_can_be_read() -> None:
    """The number that clock_getcpuclockid(3) computes, on this process: the same clock as Python's own."""
    clock = Clock(os.getpid(), 1.0)
    before = time.process_time()
    assert before <= time.clock_gettime(clock._cpu_clock) <= time.process_time()
