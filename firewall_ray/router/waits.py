"""Says what a training waits for while its workers have no room: at the beginning, and when a node has gone. In the driver."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import placement_group_table

from firewall_ray.cluster.room import Need, said_while_waiting

# Each look asks Ray's control store for all placement groups of the cluster.
LOOK_EVERY_S = 2.0


@contextmanager
def waits_said(need: Need) -> Iterator[None]:
    """While the body trains, logs what is waited for as long as the workers are not placed, again every few minutes.

    They are placed when a placement group of theirs is. Ray Train gives groups no names, so it is one that was not there before
    and has these parts; another training of this size that begins in the same moments would be taken for it.
    """
    others = set(placement_group_table())
    ended = threading.Event()

    def placed() -> bool:
        try:
            groups = placement_group_table()
        except (ray.exceptions.RayError, RuntimeError):  # words only: whatever fails here must not disturb the training
            return False
        return any(
            # The parts in their order: Ray Train makes one bundle a worker.
            group["state"] == "CREATED" and group_id not in others and list(group["bundles"].values()) == list(need.parts)
            for group_id, group in groups.items()
        )

    def look() -> None:
        # Until the body ends, since what was placed may have to be placed again.
        while not ended.is_set():
            with said_while_waiting(need, placed):
                while not ended.wait(LOOK_EVERY_S) and not placed():
                    pass
            while not ended.wait(LOOK_EVERY_S) and placed():
                pass

    thread = threading.Thread(target=look, name="training-waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
