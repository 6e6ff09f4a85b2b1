"""The system calls that a program may not make: a seccomp filter, in classic BPF, written out by hand.

Namespaces hide the machine; the filter keeps a program from being more than one process, which is what makes its limits
hold: memory and CPU time are limited a process, so a program that cannot fork cannot have more of them. A refused call
fails with EPERM, an ordinary PermissionError in Python. Threads are allowed.
"""

import ctypes
import errno
import platform
import struct

from firewall_ray.sandbox.linux import PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prctl

# Numbers from the kernel's tables: x86_64, aarch64 (None: the call does not exist there).
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # Other processes: to make, become, watch or end them.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_open": (434, 434),
    # The network. A network namespace does not hold back AF_VSOCK, which reaches a virtual machine's host.
    "socket": (41, 198),
    # Memory that no process limit counts.
    "shmget": (29, 194),
    "memfd_create": (319, 279),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Namespaces, and the widest doors into the kernel. io_uring would make calls that no filter sees.
    "unshare": (272, 97),
    "setns": (308, 268),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
}
_CLONE, _PRLIMIT = (56, 220), (302, 261)
_CLONE3 = 435  # Its flags lie in memory, where a filter cannot look: ENOSYS makes the C library use clone instead.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column in the table, AUDIT_ARCH_*
_X32_BIT = 0x40000000  # x86_64's second set of numbers
_CLONE_THREAD = 0x00010000

# BPF operations, and the offsets in struct seccomp_data (little endian: the low half of an argument comes first).
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand


def supported() -> bool:
    return platform.machine() in _ARCHITECTURES


def build_filter() -> bytes:
    """The filter for this machine, as an array of struct sock_filter. Raises KeyError where the architecture is unknown."""
    column, architecture = _ARCHITECTURES[platform.machine()]
    refuse: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow: Instruction = (_RETURN, 0, 0, _ALLOW)
    steps: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture),
        refuse,  # 32-bit calls from a 64-bit process have other numbers
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, 0, 1, _X32_BIT),
        refuse,
        (_IF_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for numbers in _DENIED.values():
        if (number := numbers[column]) is not None:
            steps += [(_IF_EQUAL, 0, 1, number), refuse]
    # A new thread is fine, a new process is not.
    steps += [(_IF_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_IF_ANY_BIT, 1, 0, _CLONE_THREAD), refuse, allow]
    # Its own limits are fine (they can only shrink), those of another process are not.
    steps += [(_IF_EQUAL, 0, 4, _PRLIMIT[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_IF_EQUAL, 1, 0, 0), refuse, allow]
    steps += [allow]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def install(program: bytes) -> None:
    """Apply `build_filter()` to this thread and all that it starts. Needs no_new_privs; cannot be undone."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    pointer = ctypes.create_string_buffer(header, len(header))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(pointer))
