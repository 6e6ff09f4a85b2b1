"""The caller's side: programs in, outcomes out. One fork server a sandbox, started at the first program.

Runs wherever a grader runs, in a Ray worker or a plain Python. A program that manages to end its fork server costs a restart.
"""

import functools
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from firewall_ray.errors import SandboxUnavailable
from firewall_ray.sandbox.clock import longest
from firewall_ray.sandbox.fork_server import receive, send
from firewall_ray.sandbox.program import FAILED, Limits

Isolation = Literal["required", "unsafe"]

SECONDS_TO_START = 60.0
SECONDS_TO_END = 5.0
SECONDS_TO_SPARE = 30.0  # beyond a program's own end, before the fork server counts as hung: the machine may be busy

_IMPORT_ROOT = str(Path(__file__).resolve().parents[2])
_KEPT = ("LD_LIBRARY_PATH",)  # Python itself may need it to start; programs do not see it
_BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
from firewall_ray.sandbox import fork_server
del sys.path[0]
fork_server.main(*sys.argv[2:])
"""
_REFUSAL = (
    "Generated programs cannot be executed here with isolation: {isolation}, because: {reason}. It takes Linux 5.12 or newer, and "
    "root with CAP_SYS_ADMIN or user namespaces open to ordinary users (sysctl user.max_user_namespaces; in a container a "
    "seccomp profile that allows unshare and mount). Grade on such a node. Or set isolation: unsafe (for HumanEval "
    "grading.humaneval.isolation), which lets programs see what this user sees: only for completions that you trust."
)


class Sandbox:
    """Runs untrusted programs, one at a time; several sandboxes run several.

    isolation: "required" refuses to run anything where the kernel does not allow namespaces; "unsafe" runs programs without
    them, with the user's view of files, network and processes, under the resource limits and the system call filter alone.
    """

    def __init__(self, limits: Limits, isolation: Isolation = "required") -> None:
        self.limits = limits
        self.isolation = isolation
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def run(self, program: str) -> str:
        """Execute a program; returns "passed", "timed out" or "failed: <text>", whatever the program does.

        Raises SandboxUnavailable, with the reason, where this machine does not allow the isolation asked for.
        """
        with self._lock:
            for _ in range(2):  # A fork server that ends may be the machine's doing once.
                reply = self._ask(program)
                if reply is not None:
                    return str(reply["outcome"])
        return f"{FAILED}the program ended the sandbox that it ran in"

    def close(self) -> None:
        """End the fork server and whatever runs in it. The next `run` starts another."""
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            try:
                self._server.wait(SECONDS_TO_END)  # it ends by itself once the socket is closed
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._control = self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, program: str) -> dict[str, Any] | None:
        """The fork server's reply; None where it ended, or did not reply in time, and was stopped."""
        if self._control is None:
            self._start()
        assert self._control is not None
        try:
            send(self._control.fileno(), {"program": program})
            reply = receive(self._control.fileno())
        except OSError:
            reply = None
        except BaseException:  # An interrupt: the reply still to come must not be taken for the next program's.
            self.close()
            raise
        if reply is None:
            self.close()
        return reply

    def _start(self) -> None:
        try:
            greeting = self._launch()
        except OSError as e:
            greeting = {"unavailable": f"its process did not get ready: {e}"}
        if "unavailable" in greeting:
            self.close()
            raise SandboxUnavailable(_REFUSAL.format(isolation=self.isolation, reason=greeting["unavailable"]))
        self._set_timeout(longest(self.limits.timeout_s) + SECONDS_TO_SPARE)

    def _launch(self) -> dict[str, Any]:
        """Start the fork server; returns its greeting. Raises OSError where it cannot be started or says nothing in time."""
        if sys.platform != "linux":
            return {"unavailable": f"this is {sys.platform}"}
        # A socket, not pipes: it is both ways, has timeouts, and tells each side when the other is gone.
        self._control, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                # -P -s -S: nothing is imported from the working directory, the user's or the installed packages.
                [*(sys.executable, "-P", "-s", "-S", "-X", "utf8", "-c", _BOOT, _IMPORT_ROOT), *self._arguments(theirs.fileno())],
                # The one seed of hashes makes the order of a set, and with it a verdict, the same in every run.
                env={"PYTHONHASHSEED": "0", **{name: os.environ[name] for name in _KEPT if name in os.environ}},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in the terminal then reaches the caller alone, who ends the server by closing the socket.
                start_new_session=True,
            )
        self._set_timeout(SECONDS_TO_START)
        greeting = receive(self._control.fileno())
        if greeting is None:
            return {"unavailable": f"its process ended with exit code {self._server.wait()} before it was ready"}
        return greeting

    def _arguments(self, control: int) -> list[str]:
        return [str(control), json.dumps(self.limits), self.isolation]

    def _set_timeout(self, seconds: float) -> None:
        """For every read and write of the control socket, which then fail with BlockingIOError."""
        assert self._control is not None
        # struct timeval. Not `settimeout`: it makes the descriptor non-blocking, and os.read would then fail at once.
        timeval = struct.pack("ll", int(seconds), 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._control.setsockopt(socket.SOL_SOCKET, option, timeval)


@functools.cache
def shared_sandbox(limits: Limits, isolation: Isolation) -> Sandbox:
    """This process's own sandbox with these limits. It ends with the process."""
    return Sandbox(limits, isolation)
