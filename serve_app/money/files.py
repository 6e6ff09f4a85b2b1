"""What was spent, under ROOT/spending/: a file of each replica that has something to keep there. Blocks: for threads.

All of them have the same form, and what several say of the same is the largest of it (`ledger.py`), so they may be read in any
order, made one of several, and read twice.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from firewall_ray.store.dataset import Dataset, storage_errors

ENDING = ".json"


class SpendingFiles:
    """name: of the own file. Everything raises StorageFailure where storage fails, reading also ArtifactError."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self._dataset = dataset
        self._own = f"{name}{ENDING}"

    def write(self, told: Mapping[str, Any]) -> None:
        """told: by ingress replica, its totals (`usd`, by period and key) and when it was heard of (`heard_s`, Unix seconds)."""
        with storage_errors(f"write {self._dataset.path}"):
            self._dataset.filesystem.create_dir(self._dataset.path, recursive=True)
            self._dataset.write_json(self._own, {"told": told})

    def read_others(self) -> dict[str, Any]:
        """What `write` was given, by name of the file."""
        names = (path.removeprefix(f"{self._dataset.path}/") for path in self._dataset.files())
        return {name: self._dataset.read_json(name)["told"] for name in names if name.endswith(ENDING) and name != self._own}

    def delete(self, names: Iterable[str]) -> None:
        """Of `read_others`."""
        with storage_errors(f"delete files of {self._dataset.path}"):
            for name in names:
                self._dataset.filesystem.delete_file(f"{self._dataset.path}/{name}")
