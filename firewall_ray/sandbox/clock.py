"""When a program's time is up: `timeout_s` of wall time, as long as the machine has time for it.

The official checker counts wall time alone, so on a busy machine (a grader beside an engine, more graders than cores) its
verdict depends on what else runs. Here a program that is still computing when `timeout_s` have passed gets the CPU time that
it missed: it ends after `timeout_s` of CPU time. One that sleeps or waits ends at once, as officially.
"""

import os
import signal
import time

SECONDS_AFTER_TIMEOUT = 1.0  # a program that swallowed its timeout is killed so much later, as officially
MAX_STRETCH = 20  # never more wall time than so many timeouts
_SLEEPING_SHARE = 0.01  # of a CPU: with less than that a program is not computing, however busy the machine is


def longest(timeout_s: float) -> float:
    """Seconds of wall time after which every program has ended."""
    return MAX_STRETCH * timeout_s + SECONDS_AFTER_TIMEOUT


class Clock:
    """Of one process, from now on. It gets SIGALRM when its time is up, which `program` turns into an exception there."""

    def __init__(self, pid: int, timeout_s: float) -> None:
        self._pid = pid
        self._timeout_s = timeout_s
        self._cpu_clock = (~pid << 3) | 2  # CPUCLOCK_SCHED of a whole process, as clock_getcpuclockid(3) makes it
        self._started = time.monotonic()
        self._check_at = self._started + timeout_s
        self._checked, self._cpu_then = self._started, 0.0
        self._alarmed = False

    def seconds_left(self) -> float | None:
        """How long to wait before asking again; None when the process must end now."""
        now = time.monotonic()
        if now < self._check_at:
            return self._check_at - now
        if self._alarmed:
            return None
        missed = self._missed(now)
        if missed <= 0:
            os.kill(self._pid, signal.SIGALRM)
            self._alarmed = True
        # On one CPU it cannot have caught up before `missed` seconds of wall time, so that is when to look again.
        self._check_at = now + (missed if missed > 0 else SECONDS_AFTER_TIMEOUT)
        return self._check_at - now

    def _missed(self, now: float) -> float:
        """CPU seconds that a computing process has not had yet, 0 where it sleeps or was given all the time that there is."""
        try:
            cpu = time.clock_gettime(self._cpu_clock)
        except OSError:  # it has ended
            return 0
        share = (cpu - self._cpu_then) / (now - self._checked)
        self._checked, self._cpu_then = now, cpu
        left = self._started + MAX_STRETCH * self._timeout_s - now
        return 0 if share < _SLEEPING_SHARE else min(self._timeout_s - cpu, left)
