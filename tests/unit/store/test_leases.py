"""Claims on a ROOT: they exclude each other, those of the living are never taken, those of the dead are. On a disk and on S3."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_server import ENVIRONMENT, empty_root, s3_server

from firewall_ray.store import leases
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.leases import WHOLE_ROOT, Claim, Claims, Heartbeat

TIMEOUT_S = 120

COUNTS = """
import random, sys, time
from pathlib import Path
from firewall_ray.store import leases
from firewall_ray.store.layout import ArtifactStore
leases.POLL_S = 0.05
store, counter = ArtifactStore(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with leases.lease(store, "count", writes=["counter"]):
        number = int(counter.read_text())
        time.sleep(random.uniform(0, 0.02))
        counter.write_text(str(number + 1))
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "disk":
        return str(tmp_path / "run")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return empty_root(request.getfixturevalue("endpoint"))


def elsewhere(job: str = "sample", **fields: Any) -> Claim:
    """Of a process on another machine, which cannot be looked up from here."""
    return Claim(job, host="elsewhere", pid=1, process="another boot/pid:[1]/1", **fields)


def acquired(claims: Claims, claim: Claim) -> threading.Thread:
    """A thread that ends when the claim is held."""
    thread = threading.Thread(target=claims.acquire, args=(claim,), daemon=True)
    thread.start()
    return thread


def test_of_many_processes_only_one_at_a_time_holds_the_lease(root: str, tmp_path: Path) -> None:
    """Reading, waiting and writing a number loses counts where two do it at once."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNTS, root, str(counter), "5"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, stderr = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, stderr
    assert int(counter.read_text()) == 4 * 5


def test_the_lease_of_a_live_holder_elsewhere_is_never_taken_and_that_of_a_dead_one_is(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("HEARTBEAT_S", 0.2), ("EXPIRES_S", 5.0), ("POLL_S", 0.2)):
        monkeypatch.setattr(leases, name, seconds)
    claims, holder = Claims(ArtifactStore(root)), elsewhere()
    claims.acquire(holder)
    heartbeat = Heartbeat(claims, holder)
    heartbeat.start()
    contender = acquired(claims, elsewhere("label"))
    contender.join(7)  # longer than a claim without heartbeats lasts
    assert contender.is_alive()
    assert claims.exists(holder)

    heartbeat.stop()  # and leave the claim, as a killed machine does
    contender.join(TIMEOUT_S)
    assert not contender.is_alive()
    assert not claims.exists(holder)
    assert heartbeat.lost is None


def test_a_claim_that_is_old_by_the_stores_own_clock_is_taken_over_at_once(tmp_path: Path) -> None:
    claims, dead = Claims(ArtifactStore(str(tmp_path))), elsewhere()
    claims.acquire(dead)
    long_ago = time.time() - leases.EXPIRES_S - 5
    os.utime(f"{claims.path}/{dead.name}", (long_ago, long_ago))
    acquired(claims, elsewhere()).join(TIMEOUT_S)
    assert not claims.exists(dead)


def test_a_process_that_runs_here_is_not_dead_however_old_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen job, or a clock that was set: it could go on at any time."""
    monkeypatch.setattr(leases, "POLL_S", 0.1)
    claims = Claims(ArtifactStore(str(tmp_path)))
    frozen = Claim("sample", pid=os.getpid(), process=leases._process(os.getpid()))
    claims.write(frozen)
    os.utime(f"{claims.path}/{frozen.name}", (0, 0))
    contender = acquired(claims, elsewhere())
    contender.join(1)
    assert contender.is_alive()
    assert claims.exists(frozen)
    claims.delete(frozen)
    contender.join(TIMEOUT_S)
    assert not contender.is_alive()


def test_another_process_that_got_the_same_number_is_not_taken_for_the_dead_one(tmp_path: Path) -> None:
    boot_and_namespace = leases._process(os.getpid()).rpartition("/")[0]
    assert leases._is_alive(Claim("sample", pid=os.getpid(), process=f"{boot_and_namespace}/1")) is False
    assert leases._is_alive(Claim("sample", pid=os.getpid(), process=leases._process(os.getpid()))) is True
    assert leases._is_alive(elsewhere()) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job": "sample"}', '{"job": 1, "reads": [], "writes": [], "new": 2}'])
def test_what_cannot_be_read_is_somebodys_claim_on_everything(tmp_path: Path, text: str) -> None:
    claims, mine = Claims(ArtifactStore(str(tmp_path))), elsewhere("label", writes=("labels",))
    claims.write(mine)
    Path(claims.path, "theirs.json").write_text(text)
    (theirs,) = claims.conflicting(mine)
    assert "cannot be read" in str(theirs)


@pytest.mark.parametrize(
    ("ours", "theirs", "conflict"),
    [
        (Claim("pipeline"), Claim("report", reads=("labels", "scores"), writes=("report",)), True),
        (Claim("pipeline"), Claim("deploy", reads=("routers",), writes=()), True),
        (Claim("a", writes=("samples/weak",)), Claim("b", writes=("samples/weak",)), True),
        (Claim("a", writes=("samples/weak",)), Claim("b", writes=("samples/strong",)), False),
        (Claim("a", writes=("samples/weak",)), Claim("b", writes=("samples/weak_3b",)), False),
        (Claim("a", writes=("samples",)), Claim("b", writes=("samples/strong",)), True),
        (Claim("a", writes=("samples/weak",)), Claim("b", reads=("samples",), writes=("grades",)), True),
        (Claim("a", reads=("labels",), writes=("routers",)), Claim("b", reads=("labels",), writes=("report",)), False),
        (Claim("a", reads=("routers",), writes=()), Claim("b", reads=("routers",), writes=()), False),
    ],
)
def test_jobs_wait_for_each_other_where_one_writes_what_the_other_uses(ours: Claim, theirs: Claim, conflict: bool) -> None:
    assert ours.conflicts(theirs) is theirs.conflicts(ours) is conflict


FOLDERS = st.lists(st.sampled_from(["queries", "samples", "samples/weak", "samples/strong", "labels"]), max_size=3).map(tuple)
CLAIMS = st.builds(Claim, st.just("any"), FOLDERS, FOLDERS)


@given(CLAIMS, CLAIMS)
def test_conflicts_are_mutual_readers_never_conflict_and_whoever_takes_all_conflicts_with_every_user(a: Claim, b: Claim) -> None:
    assert a.conflicts(b) == b.conflicts(a)
    assert not Claim("a", a.reads, ()).conflicts(Claim("b", b.reads, ()))
    assert Claim("all", (), (WHOLE_ROOT,)).conflicts(a) == bool(a.reads or a.writes)
