"""A fresh Python in the jail that forks one child a program: no start-up time, and nothing to find in its memory.

Started by `sandbox` with an empty environment, in a process that never held anything of the caller's. It speaks in messages
(4 bytes length, JSON) over one inherited socket: first a greeting, then a program in, an outcome out. It ends,
and with it everything in its namespaces, when the socket does.
"""

import errno
import gc
import importlib
import json
import os
import platform
import select
import signal
import sys
import tempfile
from contextlib import nullcontext, suppress
from typing import Any

from firewall_ray.sandbox import jail, seccomp
from firewall_ray.sandbox import program as programs
from firewall_ray.sandbox.clock import Clock
from firewall_ray.sandbox.linux import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, prctl
from firewall_ray.sandbox.program import TIMED_OUT, Limits

NONCE_BYTES = 16

# What programs import most, so that a child finds it loaded; and all that needs a shared library from outside the jail.
_PRELOADED = (
    *("typing", "math", "re", "string", "random", "collections", "itertools", "functools", "operator", "copy", "heapq", "bisect"),
    *("datetime", "decimal", "fractions", "statistics", "hashlib", "json", "dataclasses", "enum", "time", "calendar", "textwrap"),
    *("bz2", "ctypes", "lzma", "sqlite3", "ssl", "uuid", "zlib"),
)


def main(control_fd: str, limits_json: str, isolation: str) -> None:
    """Runs until the other end of the control socket closes. Says there why, instead of being ready, where the kernel refuses.

    isolation: "required", or anything else for none.
    """
    control, limits, isolated = int(control_fd), Limits(*json.loads(limits_json)), isolation == "required"
    sys.argv, sys.orig_argv = [""], []  # they name the caller's folders
    os.environ.clear()
    sys.path = [os.path.abspath(path) for path in sys.path if os.path.isdir(path)]  # the standard library's folders
    _preload()
    try:
        if isolated:
            if not seccomp.supported():
                raise OSError(errno.ENOSYS, f"no system call filter is known for {platform.machine()}")
            jail.enter([path for path in sys.path if not path.startswith(tuple(f"{other}/" for other in sys.path))])
            if os.fork():  # The child is process 1 of the new world; this one only waits, so that it can be killed.
                os.close(control)
                os.wait()
                return
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_DUMPABLE, 0)
    except OSError as e:
        send(control, {"unavailable": e.strerror})
        return
    _Server(control, limits, isolated=isolated).serve()


def _preload() -> None:
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:  # This Python was built without it, so programs go without it too.
            continue
    # Garbage would be frozen with the rest.
    gc.collect()
    gc.freeze()  # children then share these pages instead of copying them


class _Server:
    def __init__(self, control: int, limits: Limits, *, isolated: bool) -> None:
        self._control = control
        self._limits = limits
        self._isolated = isolated
        self._filter = seccomp.build_filter() if seccomp.supported() else None

    def serve(self) -> None:
        # Only what a program went through shows that programs can be run: every call that confines one is made here.
        outcome = self._run("import this_module_does_not_exist")
        if outcome != f"{programs.FAILED}No module named 'this_module_does_not_exist'":
            send(self._control, {"unavailable": outcome})
            return
        send(self._control, {"ready": True})
        while (request := receive(self._control)) is not None:
            send(self._control, {"outcome": self._run(request["program"])})

    def _run(self, program: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        report, report_out = os.pipe()
        with nullcontext() if self._isolated else tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            pid = os.fork()
            if pid == 0:
                programs.run(program, self._limits, report_out, nonce, self._filter, scratch)
            # The child's end: only then does reading find the end when the child has closed its own.
            os.close(report_out)
            try:
                return self._read_report(report, nonce, pid)
            finally:
                os.close(report)
                self._end(pid)

    def _read_report(self, report: int, nonce: bytes, pid: int) -> str:
        """The child's outcome. One that ended, or was too late, or wrote anything else, has "timed out", as officially."""
        clock = Clock(pid, self._limits.timeout_s)
        poll = select.poll()
        poll.register(report, select.POLLIN)
        poll.register(self._control, select.POLLRDHUP)
        found = b""
        while (left := clock.seconds_left()) is not None:
            ready = dict(poll.poll(left * 1000))
            if self._control in ready:  # The caller is gone, and nobody waits for this outcome.
                raise SystemExit
            if report not in ready:
                continue
            chunk = os.read(report, 4096)
            found += chunk
            # Nonce, length in two bytes, outcome: as `program.run` writes it.
            text = found[NONCE_BYTES + 2 :]
            # As soon as one byte is wrong: whoever writes anything else has no second try.
            if found[:NONCE_BYTES] != nonce[: len(found)]:
                break
            if len(found) >= NONCE_BYTES + 2 and len(text) >= int.from_bytes(found[NONCE_BYTES : NONCE_BYTES + 2], "big"):
                return text.decode(errors="replace")
            if not chunk:
                break
        return TIMED_OUT

    def _end(self, pid: int) -> None:
        """Nothing of a program survives it: in the jail everything but this process ends, elsewhere its session."""
        for target in (-1,) if self._isolated else (pid, -pid):
            with suppress(ProcessLookupError):
                os.kill(target, signal.SIGKILL)
        while True:
            try:
                os.wait()
            # None is left: as process 1 of the jail it inherits those that the program left behind, too.
            except ChildProcessError:
                return


def send(socket: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    data = len(data).to_bytes(4, "big") + data
    while data:
        data = data[os.write(socket, data) :]


def receive(socket: int) -> dict[str, Any] | None:
    """The next message; None when the other end is closed."""
    size = _read(socket, 4)
    data = size and _read(socket, int.from_bytes(size, "big"))
    return json.loads(data) if data else None


def _read(socket: int, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = os.read(socket, size - len(data))
        if not chunk:
            return None
        data += chunk
    return data
