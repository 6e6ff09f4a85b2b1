"""Placement groups that live as long as the actor in each: Ray keeps a group until its job ends, whatever became of the actor.

Runs in the driver, where Ray Data asks for the remote arguments of every actor that it starts: of the first ones, of those that the
pool grows by and of those that take the place of dead ones; and once an execution for its detector of high memory, which starts
none. A pool that shrinks only drops its handle of an actor.
"""

import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ray
from ray._private.state import actors  # a developer API; the public list of actors needs Ray's dashboard
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

POLL_S = 1.0
UNCLAIMED_S = 30.0  # an actor is known by its name as soon as Ray Data has asked for it, right after its remote arguments

logger = logging.getLogger(__name__)


class ActorGroups:
    """Groups for the actors of one pool. pool: its name, in Ray's dashboard too; a job's pools of one name go together."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._groups: dict[str, tuple[PlacementGroup, float]] = {}  # with its start; by name, which its actor has as well
        self._reaper: threading.Thread | None = None

    def remote_args(self, bundles: Sequence[Mapping[str, float]], strategy: Literal["STRICT_PACK", "PACK"]) -> dict[str, Any]:
        """The remote arguments of an actor that gets a new group to itself, which is removed once that actor is dead for good."""
        name = f"{_prefix(self._pool)}/{uuid.uuid4().hex[:8]}"
        group = placement_group([dict(bundle) for bundle in bundles], strategy=strategy, name=name)
        with self._lock:
            self._groups[name] = (group, time.monotonic())
            if self._reaper is None or not self._reaper.is_alive():
                self._reaper = threading.Thread(target=self._reap, name=f"groups of {self._pool}", daemon=True)
                self._reaper.start()
        return {
            "name": name,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True),
        }

    def _reap(self) -> None:
        pause = threading.Event()
        while ray.is_initialized():
            try:
                useless = self._useless()
                for name in useless:
                    remove_placement_group(self._groups[name][0])
            except Exception as e:  # the head is away for a moment, or Ray is being shut down
                logger.debug("groups of %s: %r", self._pool, e)
                useless = set()
            with self._lock:
                for name in useless:
                    del self._groups[name]
                if not self._groups:
                    self._reaper = None  # the next group starts another
                    return
            pause.wait(POLL_S)

    def _useless(self) -> set[str]:
        """Names of groups whose actor is dead, not one that Ray is starting again; and of those that never got one."""
        job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
        # By name: Ray Data hands out no handle of its actors. An actor that Ray starts again is RESTARTING, not DEAD.
        states = {actor["Name"]: actor["State"] for actor in actors(job_id=job).values()}
        now = time.monotonic()
        with self._lock:
            return {
                name
                for name, (_, since) in self._groups.items()
                if states.get(name) == "DEAD" or (name not in states and now - since > UNCLAIMED_S)
            }


def release_groups(pool: str) -> None:
    """Remove all groups of this job's pools with exactly this name, with what runs in them."""
    for group in placement_group_table().values():
        if group["name"].rpartition("/")[0] == _prefix(pool) and group["state"] != "REMOVED":
            remove_placement_group(ray.util.get_placement_group(group["name"]))


def _prefix(pool: str) -> str:
    return f"firewall-ray/{ray.get_runtime_context().get_job_id()}/{pool}"
