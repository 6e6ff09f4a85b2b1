"""The artifacts on S3: moto's server is the endpoint, pyarrow's own S3 client the caller."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from handmade import grade, make_config, query, sample, write
from s3_server import ENVIRONMENT, empty_root, s3_server

from firewall_ray.errors import ArtifactMissing, StorageFailure
from firewall_ray.schemas import DECISIONS
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.prepare_queries import read_queries, run_prepare_queries
from firewall_ray.store.layout import ArtifactStore
from serve_app.recording.decision_log import row_of, table_of
from serve_app.recording.exchange import Exchange
from serve_app.routing.decision import Decision

TIMEOUT_S = 30.0  # A user waits no longer than this to hear of wrong credentials.


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def root(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI of an empty bucket, as a user would write it."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return empty_root(endpoint)


def no_credentials(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))


def by_id(rows: Any) -> dict[str, Any]:
    return {row["query_id"]: row for row in rows.to_pylist()}


def test_queries_and_labels_live_on_s3_as_they_do_on_disk(root: str, tmp_path: Path) -> None:
    results = {}
    for place in (root, str(tmp_path)):
        config, store = make_config(place), ArtifactStore(place)
        store.check_writable()
        assert store.queries().state() == "missing"
        assert run_prepare_queries(config, store)["action"] == "run"
        assert run_prepare_queries(config, store)["action"] == "skip"
        ids = read_queries(store).read()["query_id"].to_pylist()
        write(store.grades("weak"), [grade(i, "0100", False) for i in ids])
        write(store.grades("strong"), [grade(i, "1110", True) for i in ids[:-1]])
        assert run_labeling(config, store)["left_out"] == {"strong_missing": 1}
        assert store.labels().manifest()["counts"]["labels"] == 69
        assert store.children("grades") == ["strong", "weak"]
        results[place] = by_id(store.labels().require().read())
    assert results[root] == results[str(tmp_path)]


def test_beginning_again_clears_the_folder_and_its_manifest(root: str) -> None:
    store = ArtifactStore(root)
    run_prepare_queries(make_config(root), store)
    write(store.queries(), [query("old")], "old.parquet")
    store.queries().begin({})
    assert store.queries().files() == []
    assert store.queries().state() == "unfinished"
    with pytest.raises(ArtifactMissing, match="never finished"):
        read_queries(store)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_grades_from_s3_to_s3(root: str) -> None:
    # The cluster was started before this test set the credentials: they travel inside the URI, as for a remote cluster.
    with_keys = root.replace("s3://", "s3://testing:testing@")
    store = ArtifactStore(with_keys)
    write(store.queries(), [query(f"q{i}") for i in range(50)])
    write(store.samples("weak"), [sample(f"q{i}", ["yes", "no"]) for i in range(50)])
    (result,) = run_grading(make_config(with_keys), store, models=["weak"])
    assert (result["rows"], result["errors"]) == (50, 0)
    assert {tuple(row["correct"]) for row in by_id(store.grades("weak").require().read()).values()} == {(True, False)}
    assert json.loads(json.dumps(store.grades("weak").manifest()))["counts"]["rows"] == 50


# Refused -------------------------------------------------------------------------------------------------------------


def refused(root: str) -> str:
    started = time.monotonic()
    with pytest.raises(StorageFailure) as caught:
        ArtifactStore(root).check_writable()
    assert time.monotonic() - started < TIMEOUT_S
    return str(caught.value)


def test_no_credentials_are_named_soon_with_the_ways_to_give_them(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signed request is refused by the server's authentication, not by a stand-in."""
    import requests

    no_credentials(monkeypatch, tmp_path)
    requests.post(f"http://{endpoint}/moto-api/reset-auth", data=b"0", timeout=10)  # from now on every request needs rights
    try:
        message = refused(f"s3://some-bucket/run?endpoint_override={endpoint}&scheme=http&region=us-east-1")
    finally:
        requests.post(f"http://{endpoint}/moto-api/reset-auth", data=b"inf", timeout=10)
    assert "s3://some-bucket/run" in message
    assert "AWS_ACCESS_KEY_ID" in message


def test_a_bucket_that_does_not_exist_is_named(root: str) -> None:
    assert "AWS_ACCESS_KEY_ID" in refused(root.replace("s3://bucket", "s3://nobody"))


def test_a_dataset_that_grows_file_by_file_does_so_on_s3(root: str) -> None:
    decisions = ArtifactStore(root).decisions()
    decision = Decision("weak", "score", 0.75, 0.5, "v1", False, 0.3, query_id="q")
    rows = table_of([row_of(Exchange("chat", decision=decision), DECISIONS.names, keep_text=False)], DECISIONS)
    for name in ("date=2026-01-01/a.parquet", "date=2026-01-02/b.parquet"):
        decisions.append(rows, name)
    assert decisions.require().read().equals(pa.concat_tables([rows, rows]))
    with pytest.raises(StorageFailure, match="nowhere"):
        ArtifactStore(root.replace("/runs/", "-nowhere/runs/")).decisions().append(rows, "a.parquet")
