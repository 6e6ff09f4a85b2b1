"""The Linux system calls that Python 3.11's `os` has no function for, each as one function that raises OSError."""

import ctypes
import os
import platform

# From the kernel's headers: linux/sched.h, linux/mount.h, linux/prctl.h and linux/seccomp.h. The same on both architectures.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2

# libc wraps neither call. mount_setattr is young enough to have one number on all architectures, pivot_root is not.
_SYS_MOUNT_SETATTR = 442  # Linux 5.12
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100  # linux/fcntl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

# use_errno: ctypes then keeps each call's errno, which Python's own calls in between would overwrite.
_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = (("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("userns", ctypes.c_uint64))


def unshare(flags: int) -> None:
    """Leave the caller's namespaces for new ones. CLONE_NEWPID counts for the next child; the rest at once."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()), f"mount {target}")


def make_read_only(target: str, flags: int = MS_RDONLY | MS_NOSUID | MS_NODEV) -> None:
    """Set flags on a mount and all mounts below it. Only adds, so that flags locked by an outer namespace stay as they are."""
    attributes = _MountAttributes(flags, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        target.encode(),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        size,
    )
    _check(result, f"mount_setattr {target}")


def pivot_root(new_root: str) -> None:
    """Make `new_root` the root directory, and let go of the old one and everything mounted in it."""
    os.chdir(new_root)
    # With both arguments "." the old root ends up on top of the new one, from where it is detached (pivot_root(2), NOTES).
    _check(_libc.syscall(ctypes.c_long(_SYS_PIVOT_ROOT[platform.machine()]), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", ctypes.c_int(MNT_DETACH)), "umount")
    os.chdir("/")


def prctl(option: int, *arguments: int) -> None:
    # A variadic call: each argument must be given in full width, and some options refuse others than 0 in unused ones.
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(ctypes.c_int(option), *padded), f"prctl {option}")


def drop_capabilities() -> None:
    """Give up all capabilities of this thread for good; together with no_new_privs nothing brings them back."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Two sets of (effective, permitted, inheritable), 32 capabilities each, all empty.
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, nothing), "capset")


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
