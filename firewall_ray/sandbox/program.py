"""One program, in a process of its own: confined, executed as HumanEval's own checker executes it, and reported.

`execute` follows openai/human-eval's execution.py (check_correctness and reliability_guard), the same functions set to
None included: a completion that calls `os.remove` or `exit()` fails there, so it fails here. The guard is for equal
verdicts only; what protects the machine is `confine`. Where the two differ, a program fails here that might pass there:

* files: it sees the standard library, an empty /tmp (its working directory) and /dev/null, and can write to /tmp alone,
  `scratch_mib` in all; the official guard lets it read and write whatever its user may;
* packages: the standard library alone, not what happens to be installed beside the checker;
* processes and network: no process can be made by any way and no socket opened (socketpair works);
* memory: `memory_mib` of address space; the official checker sets no limit unless asked to;
* output: thrown away as it is written, where the official checker keeps it in memory;
* time: wall time as long as the machine has time for it, see `clock`.

What remains possible: the program shares its interpreter with the tests, as it does officially. An object equal to
everything passes. Whoever writes to all open files, ends the process or prints "passed" gains nothing, since a report counts
only with a number drawn for this run; but a program written against this very module can find that number in memory.
"""

import builtins
import faulthandler
import io
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from typing import Any, NamedTuple, NoReturn

from firewall_ray.sandbox import jail, seccomp
from firewall_ray.sandbox.linux import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, prctl

PASSED, TIMED_OUT, FAILED = "passed", "timed out", "failed: "
NOT_CONFINED = "not confined: "  # the program was not run at all
# A report's length has two bytes; what is longer than this is cut off.
MAX_OUTCOME_BYTES = 2_000
NUM_THREADS, NUM_FILES = 64, 64
_MIB = 1 << 20

# What reliability_guard sets to None, and the modules it hides.
_NULLED_OS = (
    *("kill", "killpg", "system", "fork", "forkpty", "putenv", "setuid", "chroot", "getcwd", "chdir", "fchdir", "truncate"),
    *("remove", "unlink", "rmdir", "removedirs", "rename", "renames", "replace"),
    *("chmod", "fchmod", "lchmod", "chown", "fchown", "lchown", "lchflags"),
)
_NULLED_SHUTIL = ("rmtree", "move", "chown")
_HIDDEN_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")


class Limits(NamedTuple):
    """timeout_s: wall time, as the official checker's; a program that swallows it is killed one second later. memory_mib:
    address space. scratch_mib: all of its files together."""

    timeout_s: float = 3.0
    memory_mib: int = 1_024
    scratch_mib: int = 64


class TimedOut(Exception):
    """Raised inside the program by the alarm."""


class _Discard(io.StringIO):
    """stdout and stderr: everything is thrown away, and reading raises, as it does officially."""

    def write(self, text: str) -> int:
        return len(text)

    def read(self, *args: Any) -> str:
        raise OSError

    readline = readlines = read  # type: ignore[assignment]

    def readable(self) -> bool:
        return False


def run(program: str, limits: Limits, report_fd: int, nonce: bytes, syscall_filter: bytes | None, scratch: str | None) -> NoReturn:
    """The whole life of the child: confine, execute, report, end. The report is nonce, length (2 bytes), outcome."""
    write, leave, length = os.write, os._exit, len  # bound now: the program can put anything in their place
    try:
        try:
            confine(limits, report_fd, syscall_filter, scratch)
        except OSError as e:
            outcome = f"{NOT_CONFINED}{e}"
        else:
            outcome = execute(program)
        text = outcome.encode(errors="backslashreplace")[:MAX_OUTCOME_BYTES]
        write(report_fd, nonce + length(text).to_bytes(2, "big") + text)
    finally:
        leave(0)


def confine(limits: Limits, report_fd: int, syscall_filter: bytes | None, scratch: str | None) -> None:
    """Take from this process all that a program does not need. Raises OSError where the kernel refuses.

    scratch: the folder to work in, of a process outside the jail; None in the jail, where every process makes its own.
    """
    # A session of its own, so that outside the jail all of it can be killed by its group.
    os.setsid()
    # All but the standard streams and the report: the control socket above all.
    os.closerange(3, report_fd)
    os.closerange(report_fd + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if scratch is None:
        jail.make_scratch(limits.scratch_mib)
        jail.become_nobody()
    else:
        os.chdir(scratch)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which would clear it
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    bounds = {
        resource.RLIMIT_AS: limits.memory_mib * _MIB,
        resource.RLIMIT_FSIZE: limits.scratch_mib * _MIB,
        # The kernel's own end, a second after the clock's: timeout_s of CPU time, and one more for who swallows that.
        resource.RLIMIT_CPU: math.ceil(limits.timeout_s) + 2,
        resource.RLIMIT_NOFILE: NUM_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    # Outside the jail this counts everything that the user runs. Where root grades, all programs at once are the same nobody, and
    # their threads count together.
    if scratch is None:
        bounds[resource.RLIMIT_NPROC] = NUM_THREADS
    for which, bound in bounds.items():
        # A limit above the hard one is refused to whoever is not root.
        hard = resource.getrlimit(which)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(which, (bound, bound))
    # Last: calls above are among those that it refuses.
    if syscall_filter is not None:
        seccomp.install(syscall_filter)


def execute(program: str) -> str:
    """Execute a program in this process, which is of no use for anything else afterwards. Returns its outcome."""
    _guard()
    sys.stdin = sys.stdout = sys.stderr = _Discard()
    # Sent by the fork server's clock. Python runs the handler between two bytecodes of the main thread, as officially.
    signal.signal(signal.SIGALRM, _raise_timed_out)
    try:
        exec(program, {})
    except TimedOut:
        return TIMED_OUT
    # SystemExit and KeyboardInterrupt are failures of the program too, as officially.
    except BaseException as e:
        return f"{FAILED}{e}"
    return PASSED


def _raise_timed_out(signum: int, frame: Any) -> NoReturn:
    raise TimedOut("Timed out!")


def _guard() -> None:
    faulthandler.disable()
    for name in ("exit", "quit", "help"):
        setattr(builtins, name, None)
    for name in _NULLED_OS:
        setattr(os, name, None)
    for name in _NULLED_SHUTIL:
        setattr(shutil, name, None)
    subprocess.Popen = None  # type: ignore[assignment, misc]
    for name in _HIDDEN_MODULES:
        # Importing it then raises ImportError.
        sys.modules[name] = None  # type: ignore[assignment]
