"""Where programs live: namespaces of their own, and a file system that holds the standard library and an empty /tmp.

Entered once, by the fork server, before it forks for the first time. Needs Linux 5.12 and either CAP_SYS_ADMIN (root) or
user namespaces that an ordinary user may create; nothing has to be installed.
"""

import os
from collections.abc import Sequence

from firewall_ray.sandbox.linux import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    drop_capabilities,
    make_read_only,
    mount,
    pivot_root,
    unshare,
)

SCRATCH = "/tmp"
NOBODY = 65534
_NAMESPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
# Where the new root is put together: a folder that every machine has and no Python is installed in.
_NEW_ROOT = "/proc"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def enter(folders: Sequence[str]) -> None:
    """Leave the machine: no network, no other processes, no files but `folders` (read-only, at their own paths).

    The caller itself keeps its process id; its next child is the first process of the new world. Raises OSError naming the
    call that the kernel refused.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(_NAMESPACES)
    except PermissionError:
        unshare(CLONE_NEWUSER | _NAMESPACES)
        # The kernel lets an ordinary user map groups only after this (user_namespaces(7)).
        _write("/proc/self/setgroups", "deny")
        # Never 0: to be root inside would give back all capabilities at the next exec.
        _write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {gid} 1")
    os.umask(0o022)
    mount("", "/", flags=MS_REC | MS_PRIVATE)  # what is mounted from here on is seen from here only
    # 1 MiB: it holds mount points alone, no content.
    mount("tmpfs", _NEW_ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in folders:
        _show(folder)
    for device in _DEVICES:
        _touch(_NEW_ROOT + device)
        mount(device, _NEW_ROOT + device, flags=MS_BIND)
    os.makedirs(_NEW_ROOT + SCRATCH)
    # Without MS_NODEV, which would hold for the devices mounted below as well, and close them.
    make_read_only(_NEW_ROOT, MS_RDONLY | MS_NOSUID)
    pivot_root(_NEW_ROOT)


def make_scratch(size_mib: int) -> None:
    """An empty /tmp for the calling process alone, which vanishes with it, and the working directory."""
    unshare(CLONE_NEWNS)
    # nr_inodes: empty files would take kernel memory that `size` does not count.
    mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size_mib}m,nr_inodes=4096,mode=777")
    os.chdir(SCRATCH)


def become_nobody() -> None:
    """Give up root, where the caller has it, and every capability. The fork server keeps its own, out of a child's reach."""
    if os.geteuid() == 0:
        # Groups first: without root they could not be changed any more.
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    drop_capabilities()


def _show(folder: str) -> None:
    target = _NEW_ROOT + folder
    os.makedirs(target, exist_ok=True)
    mount(folder, target, flags=MS_BIND | MS_REC)
    # Installed packages lie inside the standard library's folder, and one of them may be this repository.
    for packages in ("site-packages", "dist-packages"):
        if os.path.isdir(f"{target}/{packages}"):
            mount("tmpfs", f"{target}/{packages}", "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,mode=755")
    make_read_only(target)


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
