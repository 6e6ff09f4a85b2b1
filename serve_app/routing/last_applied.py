"""The user_config that router replicas applied last, for those that start later. Runs on router replicas.

Serve hands a replica that starts the newest user_config, also one that the replicas which run have refused. Without this, it would
die of it, and be started again, and die. Kept in the cluster's own key-value store, as long as the cluster is there.
"""

from typing import Any

from pydantic_core import from_json, to_json


class LastApplied:
    """root: of the run; another run's routers are others. Blocks: called from threads."""

    def __init__(self, root: str) -> None:
        self._root = root

    def get(self) -> dict[str, Any] | None:
        """None: nothing was ever applied."""
        from ray.experimental.internal_kv import _internal_kv_get  # Not where there is no Ray: tests have a memory of their own.

        found = _internal_kv_get(self._key())
        return None if found is None else dict(from_json(found))

    def put(self, user_config: dict[str, Any]) -> None:
        """In place of what was there."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self._key(), to_json(user_config), overwrite=True)

    def _key(self) -> bytes:
        from ray import serve

        return to_json(["firewall-ray", "router", serve.get_replica_context().app_name, self._root])
