"""Temporary files: a full disk is told from what the code around them runs into."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from firewall_ray.errors import StorageFailure
from firewall_ray.store.joins import LocalRows, Spill, spill_folder

SCHEMA = pa.schema([("query_id", pa.string())])


def lost() -> Iterator[pa.RecordBatch]:
    """Rows of a dataset that cannot be read any more."""
    yield pa.record_batch([pa.array(["a"])], SCHEMA)
    raise ConnectionResetError("the bucket is gone")


def test_what_rows_are_read_from_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError, match="the bucket is gone"):
        LocalRows(lost(), SCHEMA)
    with pytest.raises(ConnectionResetError, match="the bucket is gone"):
        Spill(lost(), SCHEMA, 1, tmp_path / "rows")
    with pytest.raises(FileNotFoundError, match="elsewhere"), spill_folder():
        (tmp_path / "elsewhere").read_bytes()


def test_a_disk_that_takes_nothing_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageFailure, match="Set TMPDIR"):
        Spill(iter(()), SCHEMA, 1, tmp_path / "not" / "there")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StorageFailure, match=r"Cannot keep temporary files in .*missing.* Set TMPDIR"), spill_folder():
        pass


def test_a_folder_is_gone_after_its_body_whatever_became_of_it() -> None:
    with pytest.raises(KeyError), spill_folder() as folder:
        raise KeyError
    assert not folder.exists()
