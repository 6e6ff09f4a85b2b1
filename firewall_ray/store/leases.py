"""Who works under ROOT: two jobs that would tear each other's datasets wait for each other, the others go side by side.

Runs in the driver. A job leaves a claim, a small JSON file in ROOT/_jobs that says which folders it reads and writes, and writes
it again every HEARTBEAT_S; it begins when no claim of another job conflicts, and deletes its own at its end.

Object stores cannot rename, and few filesystems create exclusively, so the order is all there is: *write* my claim, then *list*
the others'; whoever sees a conflict withdraws, and tries again after a random pause. Two jobs cannot both have missed the
other's claim, since each listed after it wrote and the store shows what was written. That asks for listings that are up to date:
S3, GCS, Azure and local disks have them.

A killed job's claim is void at once where its process can be looked up (same machine, same boot), and after EXPIRES_S without a
heartbeat elsewhere. Ages are differences of times that the store itself put on two claims, so no two clocks are compared.

Not covered: shared folders whose listings lag (NFS with attribute caching) may let two jobs begin within those seconds. A job on
another machine that was frozen for longer than EXPIRES_S and goes on is stopped at its next heartbeat, and may write until then.
Code that calls the stages' functions without `job` claims nothing.
"""

import json
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pyarrow import fs as pafs

from firewall_ray.errors import StorageFailure, SystemFailure
from firewall_ray.store.layout import ArtifactStore

FOLDER = "_jobs"
WHOLE_ROOT = ""
HEARTBEAT_S = 15.0
EXPIRES_S = 120.0  # eight heartbeats: an object store's bad minute must not end a job
POLL_S = 3.0
ORPHANS_S = 5.0  # Ray ends the workers of a killed driver within seconds; until then they may write

logger = logging.getLogger("firewall_ray")


@dataclass(frozen=True)
class Claim:
    """reads, writes: folders under ROOT, such as "samples" or "samples/weak"; WHOLE_ROOT is all of them."""

    job: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = (WHOLE_ROOT,)
    host: str = ""
    pid: int = 0
    process: str = ""  # see `_process`
    ray_job: str | None = None
    since: str = ""
    name: str = field(default_factory=lambda: f"{uuid.uuid4().hex}.json")

    def conflicts(self, other: "Claim") -> bool:
        """Whether one writes what the other reads or writes.

        >>> Claim("sample", writes=("samples/weak",)).conflicts(Claim("sample", writes=("samples/strong",)))
        False
        >>> Claim("grade", reads=("samples",), writes=("grades",)).conflicts(Claim("sample", writes=("samples/weak",)))
        True
        """
        return _overlap(self.writes, (*other.reads, *other.writes)) or _overlap(other.writes, self.reads)

    def __str__(self) -> str:
        ray_job = f", Ray job {self.ray_job}" if self.ray_job else ""
        return f"`{self.job}` (process {self.pid} on {self.host}{ray_job}, since {self.since})"


@contextmanager
def lease(
    store: ArtifactStore, job: str, *, reads: Sequence[str] = (), writes: Sequence[str] = (), ray_job: str | None = None
) -> Iterator[None]:
    """Waits until no other job's claim conflicts, and holds the folders while the body runs. In the main thread.

    Ctrl-C ends the waiting. SIGTERM (`ray job stop`) ends the body by SystemExit, so that the claim goes too. Raises
    SystemFailure when the lease is lost, which ends the body: somebody deleted the claim, or ROOT could not be written for
    EXPIRES_S.
    """
    claims = Claims(store)
    claim = Claim(
        job=job,
        reads=tuple(reads),
        writes=tuple(writes),
        host=socket.gethostname(),
        pid=os.getpid(),
        process=_process(os.getpid()),
        ray_job=ray_job,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    heartbeat = Heartbeat(claims, claim)
    # As a shell reads an end by a signal: 143.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        claims.acquire(claim)
        heartbeat.start()
        yield
    except SystemExit:
        if heartbeat.lost is None:
            raise
        raise SystemFailure(f"{heartbeat.lost} Run the same command again to go on.") from None
    finally:
        # Ended first, or a beat might write the claim again after its deletion.
        heartbeat.stop()
        claims.delete(claim)
        # None where it was not Python that set it, which Python cannot set again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class Claims:
    """The claims under one ROOT."""

    def __init__(self, store: ArtifactStore) -> None:
        self._filesystem = store.filesystem
        self.path = f"{store.base}/{FOLDER}"

    def acquire(self, claim: Claim) -> None:
        """Blocks until `claim` is there and conflicts with no other that is alive. Says whom it waits for."""
        said: set[str] = set()
        while True:
            # Each try writes it anew: its time is then the present, by which `conflicting` tells the others' age.
            self.write(claim)
            others = self.conflicting(claim)
            if not others:
                return
            self.delete(claim)  # so that it does not keep off those who come meanwhile
            for other in others:
                if other.name not in said:
                    logger.warning(
                        "%s waits for %s, which uses the same folders under ROOT. Ctrl-C ends the waiting; another --root does "
                        "without. A job that was killed is waited for %.0f s at most.",
                        *(claim.job, other, EXPIRES_S),
                    )
                    said.add(other.name)
            # `is False`: of a process on another machine nothing is known (None), and its age decides.
            dead = [other for other in others if _is_alive(other) is False]
            # Random, so that two that withdrew for each other do not meet again at every try.
            time.sleep(ORPHANS_S if dead else POLL_S * random.uniform(0.5, 1.5))
            for other in dead:
                self.delete(other)

    def conflicting(self, claim: Claim) -> list[Claim]:
        """The claims of others that `claim`, which is written, has to wait for. Deletes those that are stale."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        infos = {info.base_name: info for info in self._filesystem.get_file_info(selector) if info.type == pafs.FileType.File}
        if claim.name not in infos:
            raise StorageFailure(f"{self.path} does not list {claim.name}, which was just written there: ROOT cannot be shared.")
        found = []
        for name in sorted(infos.keys() - {claim.name}):
            other = self._read(name)
            if other is None or not claim.conflicts(other):
                continue
            # By the store's clock alone: my claim was written a moment ago, so its time is the store's present.
            age_s = (infos[claim.name].mtime - infos[name].mtime).total_seconds()
            # A process that runs here is not dead however old its claim: it may be suspended, and go on.
            if age_s > EXPIRES_S and _is_alive(other) is not True:
                logger.warning("%s is dead: its claim is older than %.0f s. Going on without it.", other, EXPIRES_S)
                self.delete(other)
            else:
                found.append(other)
        return found

    def exists(self, claim: Claim) -> bool:
        return bool(self._filesystem.get_file_info(f"{self.path}/{claim.name}").type == pafs.FileType.File)

    def write(self, claim: Claim) -> None:
        try:
            self._filesystem.create_dir(self.path, recursive=True)
            with self._filesystem.open_output_stream(f"{self.path}/{claim.name}") as stream:
                stream.write(json.dumps(asdict(claim)).encode())
        except OSError as e:
            raise StorageFailure(f"Cannot write {self.path}/{claim.name}, which keeps other jobs off: {e}") from e

    def delete(self, claim: Claim) -> None:
        try:
            self._filesystem.delete_file(f"{self.path}/{claim.name}")
        except OSError as e:
            if self.exists(claim):
                logger.warning("Cannot delete %s/%s: %s. It goes stale in %.0f s.", self.path, claim.name, e, EXPIRES_S)

    def _read(self, name: str) -> Claim | None:
        """None where it is gone meanwhile. What cannot be read (a heartbeat is writing it) counts as a claim on everything."""
        try:
            with self._filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                found = json.loads(stream.readall())
            return Claim(**{**found, "reads": tuple(found["reads"]), "writes": tuple(found["writes"]), "name": name})
        except FileNotFoundError:
            return None
        # TypeError: a field that this version does not have, of a newer one's claim.
        except (OSError, ValueError, KeyError, TypeError):
            return Claim("a job whose claim cannot be read", name=name)


class Heartbeat(threading.Thread):
    """Keeps a claim fresh. `lost`: why it no longer holds; then the main thread gets a SIGTERM.

    Not a SIGINT: Ray blocks it in the jobs that are submitted to it.
    """

    def __init__(self, claims: Claims, claim: Claim) -> None:
        super().__init__(name="lease-heartbeat", daemon=True)
        self._claims = claims
        self._claim = claim
        self._ended = threading.Event()
        self.lost: str | None = None

    def run(self) -> None:
        last_beat = time.monotonic()
        while not self._ended.wait(HEARTBEAT_S):
            try:
                if time.monotonic() - last_beat > EXPIRES_S:
                    self._lose(f"ROOT could not be written for {EXPIRES_S:.0f} s, so another job may have begun.")
                    return
                # Whoever takes a claim for dead deletes it; writing it again would make two holders.
                if not self._claims.exists(self._claim):
                    self._lose(f"the claim {self._claims.path}/{self._claim.name} was deleted.")
                    return
                self._claims.write(self._claim)
                last_beat = time.monotonic()
            except (OSError, StorageFailure) as e:
                logger.warning("Heartbeat under ROOT failed, trying again: %s", e)

    def stop(self) -> None:
        self._ended.set()
        if self.ident is not None:
            self.join()

    def _lose(self, why: str) -> None:
        if not self._ended.is_set():
            self.lost = f"The lease on ROOT is lost: {why}"
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGTERM)


def _overlap(some: Sequence[str], others: Sequence[str]) -> bool:
    return any(_contains(a, b) or _contains(b, a) for a in some for b in others)


def _contains(folder: str, other: str) -> bool:
    return folder in (WHOLE_ROOT, other) or other.startswith(f"{folder}/")


def _process(pid: int) -> str:
    """What no other process has: boot, pid namespace and start time; empty where the system does not tell, or it is dead."""
    try:
        # After the last bracket, for a command's name may hold blanks and brackets: field 3 is the state, field 22 the start. See
        # proc(5).
        state, *_, start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:20]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Z is a zombie, X dead. Containers count processes anew, hence the pid namespace.
        return "" if state in "ZX" else f"{boot}/{os.readlink('/proc/self/ns/pid')}/{start}"
    except OSError:
        return ""


def _is_alive(claim: Claim) -> bool | None:
    """Whether its process runs; None for one that cannot be looked up from here."""
    # Boot and namespace: where they differ, the same number is another process.
    here = _process(os.getpid()).rpartition("/")[0]
    if not here or claim.process.rpartition("/")[0] != here:
        return None
    return _process(claim.pid) == claim.process
