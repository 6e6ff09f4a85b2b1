import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import grade, query, write

from firewall_ray.errors import ArtifactError, ArtifactMissing, ConfigError, StorageFailure
from firewall_ray.schemas import QUERIES, SCORES
from firewall_ray.store.dataset import MANIFEST, STARTED, Dataset, fingerprint, storage_errors
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.row_writer import row_writer


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


def fill(dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    with dataset.writer() as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=dataset.schema))


def finished(dataset: Dataset, settings: dict[str, Any] | None = None) -> Dataset:
    dataset.begin(settings or {})
    fill(dataset, [query("a")])
    dataset.finish({"root": "x"}, {"queries": 1})
    return dataset


# The protocol --------------------------------------------------------------------------------------------------------


def test_a_dataset_goes_from_missing_through_unfinished_to_finished(store: ArtifactStore) -> None:
    queries = store.queries()
    assert queries.state() == "missing"
    queries.begin({"n": 1})
    assert queries.state() == "unfinished"
    fill(queries, [query("a"), query("b")])
    assert queries.state() == "unfinished"
    manifest = queries.finish({"root": "x"}, {"queries": 2})
    assert queries.state() == "finished"
    assert queries.manifest() == manifest
    assert (manifest["counts"], manifest["config"], manifest["settings"]) == ({"queries": 2}, {"root": "x"}, {"n": 1})
    assert manifest["config_hash"] == fingerprint({"root": "x"})
    assert {"firewall_ray", "python", "pyarrow"} <= manifest["versions"].keys()
    assert queries.require().read()["query_id"].to_pylist() == ["a", "b"]


def test_a_begun_dataset_is_refused_with_the_command_that_finishes_it(store: ArtifactStore) -> None:
    store.queries().begin({})
    fill(store.queries(), [query("a")])
    with pytest.raises(ArtifactMissing, match=r"queries: .* begun and never finished.*python jobs/prepare_queries\.py"):
        store.queries().require()


def test_beginning_again_makes_a_finished_dataset_unfinished_and_empties_it(store: ArtifactStore, tmp_path: Path) -> None:
    finished(store.queries())
    (tmp_path / "queries" / "left").mkdir()
    (tmp_path / "queries" / "left" / "over.parquet").touch()
    store.queries().begin({})
    assert store.queries().state() == "unfinished"
    assert os.listdir(tmp_path / "queries") == [STARTED]


def test_resuming_keeps_the_files(store: ArtifactStore, tmp_path: Path) -> None:
    finished(store.queries())
    store.queries().begin({}, keep_files=True)
    assert store.queries().state() == "unfinished"
    assert sorted(os.listdir(tmp_path / "queries")) == [STARTED, "part-00000.parquet"]


@pytest.mark.parametrize("step", range(1, 8))
def test_no_interruption_of_beginning_again_passes_for_a_finished_dataset(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Whatever operation `begin` dies at: finished means that every row is still there."""
    finished(store.queries())
    calls = 0

    class Dying:
        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == step:
                    raise KeyboardInterrupt
                return getattr(store.filesystem, name)(*args, **kwargs)

            return call

    queries = store.queries()
    dying = Dataset(queries.kind, queries.path, Dying(), queries.schema, queries.made_by)
    with suppress(KeyboardInterrupt):
        dying.begin({})
    if queries.state() == "finished":
        assert queries.read()["query_id"].to_pylist() == ["a"]
    else:
        assert queries.state() == "unfinished"


def test_plan_skips_what_is_finished_and_resumes_what_was_begun(store: ArtifactStore) -> None:
    queries = store.queries()
    assert queries.plan({"n": 1}) == "run"
    queries.begin({"n": 1})
    assert queries.plan({"n": 1}) == "resume"
    assert queries.plan({"n": 2}) == "run"
    fill(queries, [query("a")])
    queries.finish({}, {})
    assert queries.plan({"n": 1}) == "skip"
    assert queries.plan({"n": 2}) == "run"
    assert queries.plan({"n": 1}, force=True) == "run"
    with pytest.raises(ArtifactError, match=r"n: 1 there, 2 now.*--force"):
        queries.plan({"n": 2}, costly=True)


def test_files_of_another_program_are_read_and_never_overwritten_unasked(store: ArtifactStore) -> None:
    write(store.queries(), [query("a")])
    assert store.queries().state() == "foreign"
    assert store.queries().require().num_rows() == 1
    with pytest.raises(ArtifactError, match=r"another program wrote.*--force"):
        store.queries().plan({})
    assert store.queries().plan({}, force=True) == "run"


def test_an_identity_changes_with_the_content(store: ArtifactStore) -> None:
    write(store.queries(), [query("a")])
    foreign = store.queries().identity()
    assert store.queries().identity() == foreign
    write(store.queries(), [query("a"), query("b")])
    assert store.queries().identity() != foreign
    ours = finished(store.queries()).identity()
    assert store.queries().identity() == ours != finished(store.queries()).identity()


def test_a_manifest_that_is_no_json_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    finished(store.queries())
    (tmp_path / "queries" / MANIFEST).write_text('{"counts": ')
    with pytest.raises(ArtifactError, match=r"_MANIFEST\.json is not JSON"):
        store.queries().manifest()


def test_a_failed_writer_leaves_no_manifest(store: ArtifactStore) -> None:
    store.queries().begin({})
    with pytest.raises(ValueError), store.queries().writer() as writer:
        writer.write_table(pa.table({"other": [1]}))
    assert store.queries().state() == "unfinished"


def test_what_the_body_of_a_writer_raises_is_not_said_of_the_file(store: ArtifactStore, tmp_path: Path) -> None:
    """Reading another dataset fails while this one is written: nothing is wrong with this one."""
    store.queries().begin({})
    with pytest.raises(FileNotFoundError, match="elsewhere"), store.queries().writer():
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(StorageFailure, match="Cannot write the others"), store.queries().writer():
        raise StorageFailure("Cannot write the others")


class FullDisk:
    """A file that takes so many bytes, as pyarrow asks for one. A real full disk says the same (ENOSPC)."""

    closed = False

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise OSError(28, "No space left on device")
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("num_bytes", [0, 6, 600])  # in the first row group, and in the footer at the end
def test_the_writers_own_errors_name_its_file(num_bytes: int) -> None:
    rows = pa.table({"x": list(range(1_000))})

    def errors() -> AbstractContextManager[None]:
        return storage_errors("write runs/mine/queries")

    def write_all() -> None:
        with row_writer(lambda: pa.PythonFile(FullDisk(num_bytes), mode="w"), rows.schema, errors) as writer:
            writer.write_table(rows)

    with pytest.raises(StorageFailure, match=r"Cannot write runs/mine/queries: .*No space left"):
        write_all()


# Reading -------------------------------------------------------------------------------------------------------------


def test_files_of_any_name_and_depth_are_read_except_underscored_ones(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "queries" / "day=1").mkdir(parents=True)
    write(store.queries(), [query("a")], "day=1/x.parquet")
    write(store.queries(), [query("b")], "0.parquet")
    for name in ("_tmp.parquet", ".hidden.parquet", "notes.txt"):
        (tmp_path / "queries" / name).write_text("not Parquet")
    assert store.queries().require().read()["query_id"].to_pylist() == ["b", "a"]


def test_columns_come_in_the_contracts_order_and_types(store: ArtifactStore) -> None:
    schema = pa.schema([pa.field(name, pa.large_string()) for name in reversed(QUERIES.names)]).append(pa.field("more", pa.int8()))
    write(store.queries(), [{**query("a"), "more": 1}], schema=schema)
    assert store.queries().require().read().schema == QUERIES


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (QUERIES.remove(QUERIES.get_field_index("prompt")), r"theirs\.parquet lacks the columns \['prompt'\].*It has \['query_id'"),
        (QUERIES.set(1, pa.field("task", pa.int64())), r"column 'task' is int64, must be string"),
        (QUERIES.set(1, pa.field("task", pa.list_(pa.string()))), r"column 'task' is list<.*must be string"),
    ],
)
def test_wrong_columns_are_named(store: ArtifactStore, schema: pa.Schema, named: str) -> None:
    queries = store.queries()
    queries.filesystem.create_dir(queries.path, recursive=True)
    pq.write_table(schema.empty_table(), f"{queries.path}/theirs.parquet")
    with pytest.raises(ArtifactError, match=named):
        queries.require()


def test_only_the_columns_that_are_asked_for_are_needed(store: ArtifactStore) -> None:
    queries = store.queries()
    write(queries, [{"query_id": "a"}], schema=pa.schema([("query_id", pa.string())]))
    assert queries.require(["query_id"]).read(["query_id"]).num_rows == 1


def test_a_null_where_a_value_is_needed_is_named_by_its_row_in_the_file(store: ArtifactStore) -> None:
    rows = [query(f"q{i}", prompt=None if i == 9_000 else "?") for i in range(10_000)]  # in the second batch
    write(store.queries(), rows, schema=pa.schema([(name, pa.string()) for name in QUERIES.names]))
    with pytest.raises(ArtifactError, match=r"theirs\.parquet, column 'prompt': null in row 9000"):
        store.queries().require().read()


def test_an_optional_column_that_is_not_there_reads_as_nulls_and_one_of_a_wrong_type_is_refused(store: ArtifactStore) -> None:
    grades = store.grades("weak")
    required = pa.schema([field for field in grades.schema if field.name not in ("verdicts", "greedy_verdict")])
    write(grades, [grade("a", "10")], "old.parquet", schema=required)
    write(grades, [grade("b", "10", verdicts=["right", "truncated"])], "new.parquet")
    found = grades.require().read().sort_by("query_id")
    assert found["verdicts"].to_pylist() == [None, ["right", "truncated"]]
    assert found.schema == grades.schema
    write(grades, [grade("c", "1")], "theirs.parquet", schema=required.append(pa.field("verdicts", pa.string())))
    with pytest.raises(ArtifactError, match=r"theirs\.parquet, column 'verdicts' is string, must be list"):
        grades.require()


def test_a_number_that_does_not_fit_is_named(store: ArtifactStore) -> None:
    samples = store.samples("weak")
    rows = [{"query_id": "a", "task": "t", "model": "m", "num_prompt_tokens": 2**40}]
    write(samples, rows, schema=samples.schema.set(8, pa.field("num_prompt_tokens", pa.int64())))
    with pytest.raises(ArtifactError, match="num_prompt_tokens"):
        samples.require().read()


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(store: ArtifactStore, tmp_path: Path, keep: float) -> None:
    write(store.grades("weak"), [grade(f"q{i}", "01") for i in range(500)])
    path = tmp_path / "grades" / "weak" / "theirs.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(ArtifactError, match=r"theirs\.parquet is not a whole Parquet file.*python jobs/grade\.py"):
        store.grades("weak").require()


def test_a_file_damaged_in_the_middle_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    write(store.grades("weak"), [grade(f"q{i}", "01") for i in range(5_000)])
    path = tmp_path / "grades" / "weak" / "theirs.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = os.urandom(196)  # the first page's header: the footer is whole
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"theirs\.parquet cannot be read"):
        store.grades("weak").require().read()


# Places --------------------------------------------------------------------------------------------------------------


def test_a_local_root_may_be_a_path_a_file_uri_or_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    paths = {ArtifactStore(root).queries().path for root in (f"{tmp_path}/run", f"file://{tmp_path}/run", "~/run", "run", "./run/")}
    assert paths == {f"{tmp_path}/run/queries"}


@pytest.mark.parametrize("root", ["nosuch://bucket/run", "://"])
def test_a_root_that_no_filesystem_opens_is_a_config_error(root: str) -> None:
    with pytest.raises(ConfigError, match="root: "):
        ArtifactStore(root)


def test_a_read_only_root_is_found_before_any_work() -> None:
    with pytest.raises(StorageFailure, match=r"Cannot write under ROOT '/proc/run'"):
        ArtifactStore("/proc/run").check_writable()


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    ArtifactStore(f"{tmp_path}/new").check_writable()
    assert os.listdir(tmp_path / "new") == []


def test_children_lists_the_folders(store: ArtifactStore) -> None:
    assert store.children("samples") == []
    for model in ("weak", "strong"):
        write(store.samples(model), [])
    assert store.children("samples") == ["strong", "weak"]


def test_a_local_file_is_copied_whole(store: ArtifactStore, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([query("a")], schema=QUERIES), tmp_path / "made.parquet")
    store.queries().begin({})
    store.queries().add_file(tmp_path / "made.parquet")
    store.queries().finish({}, {})
    assert store.queries().require().num_rows() == 1


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1}) != fingerprint({"a": 1, "b": [2, 1]})


def test_each_footer_is_read_once_however_often_a_stage_asks(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = store.scores("soft_block")

    def write_row(query_id: str, name: str) -> None:
        scores.append(pa.table({"query_id": [query_id], "p_weak": pa.array([0.5], pa.float32())}, schema=SCORES), name)

    for number in range(5):
        write_row(f"q{number}", f"{number}.parquet")
    opened: list[str] = []
    parquet_file = pq.ParquetFile

    def counting(path: str, *, filesystem: Any, metadata: Any) -> pq.ParquetFile:
        if metadata is None:
            opened.append(path)
        return parquet_file(path, filesystem=filesystem, metadata=metadata)

    monkeypatch.setattr(pq, "ParquetFile", counting)
    assert scores.require().num_rows() == 5
    assert len(scores.read()) == 5
    assert sorted(opened) == scores.files()
    write_row("another", "0.parquet")
    assert scores.read(["query_id"])["query_id"].to_pylist()[0] == "another"


def test_columns_that_only_folders_name_are_refused_and_capitals_are_read(tmp_path: Path) -> None:
    """Not in silence: `labels/split=train/part.parquet` without a column `split` is not labels."""
    scores = ArtifactStore(str(tmp_path)).scores("r")
    folder = Path(scores.path) / "query_id=a"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"p_weak": [0.5]}), folder / "part.parquet")
    with pytest.raises(ArtifactError, match=r"lacks the columns \['query_id'\]"):
        scores.require()
    (folder / "part.parquet").unlink()
    pq.write_table(pa.table({"query_id": ["a"], "p_weak": [0.5]}), folder / "PART.PARQUET")
    assert scores.require().read().to_pylist() == [{"query_id": "a", "p_weak": 0.5}]
