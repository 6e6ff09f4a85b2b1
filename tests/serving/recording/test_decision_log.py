"""What the decision log leaves on disk, and what it does when the disk fails. Requests go through a gateway without Ray."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from gateway_fakes import FakeRouter, Fakes

from firewall_ray.config.serving import DecisionLogConfig
from firewall_ray.errors import StorageFailure
from firewall_ray.evaluation.inputs import LabelledQueries, read_scores
from firewall_ray.policy import QuantileTable, realised_fraction
from firewall_ray.schemas import DECISIONS, SCORES
from firewall_ray.stages.route import with_query_ids
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id
from serve_app.models.answers import Usage
from serve_app.recording import decision_log
from serve_app.recording.decision_log import DecisionLog
from serve_app.recording.exchange import Exchange
from serve_app.routing.decision import Decision

CANARY = "Zyxwvutopia"

ENDLESS_WRITER = """
import sys, time
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.config.serving import DecisionLogConfig
from serve_app.routing.decision import Decision
from serve_app.recording.decision_log import DecisionLog
from serve_app.recording.exchange import Exchange

log = DecisionLog(ArtifactStore(sys.argv[1]).decisions(), DecisionLogConfig(rows_per_file=200), lambda *_: None)
while True:
    log.record(Exchange("chat", decision=Decision("weak", "score", 0.5, 0.5, "v1", False, 0.3, query_id="q")))
    time.sleep(0.0001)
"""


@dataclass
class Outcomes:
    """What the log says became of its rows."""

    written: int = 0
    dropped: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, outcome: str, num_rows: int) -> None:
        with self.lock:
            setattr(self, outcome, getattr(self, outcome) + num_rows)


@contextmanager
def logging_to(dataset: Dataset, **config: Any) -> Iterator[tuple[DecisionLog, Outcomes]]:
    """A log that is closed at the end; files are finished by number or at the end unless `config` says otherwise."""
    outcomes = Outcomes()
    log = DecisionLog(dataset, DecisionLogConfig(**{"seconds_per_file": 3_600, **config}), outcomes)
    try:
        yield log, outcomes
    finally:
        log.close()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return ArtifactStore(str(tmp_path)).decisions()


def exchange_of(prompt: str = "Why?", p_weak: float = 0.75, **fields: Any) -> Exchange:
    route = "weak" if p_weak >= 0.5 else "strong"
    decision = Decision(route, "score", p_weak, 0.5, "v1", False, 0.3, query_id=prompt_id(prompt))  # type: ignore[arg-type]
    return Exchange("chat", **{"text": prompt, "decision": decision, "answered_by": route, "status": 200, **fields})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    return dataset.require().read().to_pylist()


# Rows ----------------------------------------------------------------------------------------------------------------


def test_a_row_says_what_happened(dataset: Dataset) -> None:
    decision = Decision("weak", "shadow", 0.25, 0.5, "v1", False, 0.3, shadowed="strong", query_id=prompt_id("Question: Why?"))
    exchange = Exchange(
        "completions",
        key_name="team-a",
        streams=True,
        text="Why?",
        decision=decision,
        answered_by="strong",
        fallback="overloaded",
        status=502,
        router_s=0.125,
        first_byte_s=0.5,
        total_s=2.0,
        usage=Usage(7, 3),
        cost_usd=0.25,
        request_id="req-1",
        began_at=1_700_000_000.5,
    )
    with logging_to(dataset) as (log, _):
        log.record(exchange)
    (row,) = rows(dataset)
    assert row.pop("time").isoformat() == "2023-11-14T22:13:20.500000+00:00"
    assert row == {
        "query_id": prompt_id("Question: Why?"),
        "p_weak": 0.25,
        "router": "v1",
        "threshold": 0.5,
        "strong_fraction": 0.3,
        "route": "weak",
        "decided": "strong",
        "answered_by": "strong",
        "reason": "shadow",
        "fallback": "overloaded",
        "endpoint": "completions",
        "streams": True,
        "status": 502,
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "router_s": 0.125,
        "first_byte_s": 0.5,
        "total_s": 2.0,
        "key_name": "team-a",
        "cost_usd": 0.25,
        "arm": "main",
        "request_id": "req-1",
        "text": None,
    }


def test_thresholds_of_never_and_always_survive(dataset: Dataset) -> None:
    with logging_to(dataset) as (log, _):
        for fraction, threshold in [(0.0, float("-inf")), (1.0, float("inf"))]:
            decision = Decision("weak", "score", 0.5, threshold, "v1", False, fraction, query_id="q")
            log.record(exchange_of(decision=decision))
    assert [row["threshold"] for row in rows(dataset)] == [float("-inf"), float("inf")]


def test_only_what_a_score_decided_is_a_row(dataset: Dataset) -> None:
    """The others have no p_weak, and scores without one could not be read."""
    fakes = Fakes(FakeRouter({"hard": 0.1}))
    with logging_to(dataset) as (log, _):
        fakes.gateway._observers = [log]
        fakes.chat("easy")
        fakes.chat("hard")
        fakes.chat("asked for", model="small")
        fakes.chat("refused", model="gpt-4")
        fakes.post("/v1/completions", {"model": "firewall", "prompt": [1, 2]})
        fakes.router.error = RuntimeError()
        fakes.chat("not decided")
    found = [(row["query_id"], row["p_weak"], row["route"], row["prompt_tokens"]) for row in rows(dataset)]
    assert found == [(prompt_id("easy"), 0.5, "weak", 7), (prompt_id("hard"), pytest.approx(0.1), "strong", 7)]


def test_what_no_score_decided_is_a_row_of_a_dataset_of_its_own(tmp_path: Path) -> None:
    """With who asked and what it used; so between the two every request that was decided is there once."""
    store = ArtifactStore(str(tmp_path))
    fakes = Fakes(FakeRouter({"hard": 0.1}))
    with logging_to(store.decisions()) as (scored, _), logging_to(store.other_requests(), keep_text=True) as (other, _):
        fakes.gateway._observers = [scored, other]
        fakes.chat("hard")
        fakes.chat("asked for", model="large", max_tokens=5)
        fakes.chat("refused", model="gpt-4")
        fakes.chat("all strong", model="firewall-1")
        fakes.post("/v1/completions", {"model": "firewall", "prompt": [1, 2]})
        fakes.router.error = RuntimeError()
        fakes.chat("not decided")
        other.record(exchange_of(decision=Decision("weak", "requested"), key_name="team-a", cost_usd=0.5, usage=Usage(7, 3)))
    found = [(row["reason"], row["route"], row["strong_fraction"], row["text"]) for row in rows(store.other_requests())]
    assert found == [
        ("requested", "strong", None, "asked for"),
        ("fraction", "strong", 1.0, "all strong"),
        ("no-text", "weak", None, None),
        ("router-failed", "weak", None, "not decided"),
        ("requested", "weak", None, "Why?"),
    ]
    last = rows(store.other_requests())[-1]
    assert (last["key_name"], last["prompt_tokens"], last["completion_tokens"], last["cost_usd"]) == ("team-a", 7, 3, 0.5)
    assert {"query_id", "p_weak", "router", "threshold", "decided"}.isdisjoint(last)
    assert [row["reason"] for row in rows(store.decisions())] == ["score"]


HARD = "hard"  # p_weak 0.1: a score sends it to the strong model

# What a score decided, and what came between that and the answer; None where no score decided.
DECIDED: dict[str, tuple[str | None, dict[str, Any]]] = {
    "by its score": ("strong", {}),
    "the strong model dead": ("strong", {"dead": "strong"}),
    "shadowed": ("strong", {"shadow": "weak"}),
    "shadowed by the same": ("strong", {"shadow": "strong"}),
    "shadowed and the weak model dead": ("strong", {"shadow": "weak", "dead": "weak"}),
    "sticky": ("strong", {"sticky": True}),
    "sticky and the strong model dead": ("strong", {"sticky": True, "dead": "strong"}),
    "sticky, shadowed and the weak model dead": ("strong", {"sticky": True, "shadow": "weak", "dead": "weak"}),
    "asked for by name": (None, {"model": "large"}),
    "the router failed": (None, {"router_fails": True}),
    "the router failed and the weak model dead": (None, {"router_fails": True, "dead": "weak"}),
    "nothing to read and the weak model dead": (None, {"text": "", "dead": "weak"}),
}


@pytest.mark.parametrize(("decided", "case"), DECIDED.values(), ids=list(DECIDED))
def test_the_header_and_the_column_decided_are_the_same_in_every_case(
    dataset: Dataset, decided: str | None, case: dict[str, Any]
) -> None:
    fakes = Fakes(FakeRouter({HARD: 0.1}), sticky=case.get("sticky", False), shadow=case.get("shadow"))
    if case.get("sticky"):  # the conversation's first turn
        fakes.chat(HARD)
    if case.get("router_fails"):
        fakes.router.error = RuntimeError()
    for route, model in (("weak", fakes.weak), ("strong", fakes.strong)):
        model.why = "dead" if case.get("dead") == route else None
    with logging_to(dataset) as (log, _):
        fakes.gateway._observers = [log]
        response = fakes.chat(case.get("text", HARD), model=case.get("model", "firewall"))
    assert response.status_code == 200
    column = rows(dataset)[0]["decided"] if dataset.files() else None  # where no score decided there is no row
    assert (response.headers.get("x-firewall-decided"), column) == (decided, decided)


def test_of_several_prompts_the_one_that_decided_is_kept(dataset: Dataset) -> None:
    fakes = Fakes(FakeRouter({"hard": 0.1}))
    with logging_to(dataset, keep_text=True) as (log, _):
        fakes.gateway._observers = [log]
        fakes.post("/v1/completions", {"model": "firewall", "prompt": ["easy", "hard", "easier"]})
    (row,) = rows(dataset)
    assert (row["text"], row["query_id"], row["route"]) == ("hard", prompt_id("hard"), "strong")


def test_text_is_kept_only_where_the_config_says_so(tmp_path: Path) -> None:
    for keep_text in (False, True):
        dataset = ArtifactStore(str(tmp_path / str(keep_text))).decisions()
        fakes = Fakes()
        with logging_to(dataset, keep_text=keep_text) as (log, _):
            fakes.gateway._observers = [log]
            fakes.chat(f"Who rules {CANARY}?")
        assert rows(dataset)[0]["text"] == (f"Who rules {CANARY}?" if keep_text else None)
        # Neither in the values nor in a file's statistics or metadata; short texts are stored as they are, statistics too.
        assert any(CANARY.encode() in Path(path).read_bytes() for path in dataset.files()) == keep_text


def test_a_text_that_is_no_utf8_is_kept_as_far_as_it_is(dataset: Dataset) -> None:
    with logging_to(dataset, keep_text=True) as (log, outcomes):
        log.record(exchange_of("half a pair: \ud83d"))
        log.record(exchange_of("fine \N{GRINNING FACE}"))
    assert [row["text"] for row in rows(dataset)] == ["half a pair: ?", "fine \N{GRINNING FACE}"]
    assert (outcomes.written, outcomes.dropped) == (2, 0)


# Read offline --------------------------------------------------------------------------------------------------------


def test_the_offline_jobs_read_the_log_as_scores(tmp_path: Path) -> None:
    """Labels of the queries that were asked, and the log in the place of a router's scores: the report's reader takes it."""
    store = ArtifactStore(str(tmp_path))
    scores = {"one": 0.9, "two": 0.1, "three": 0.4, "four": 0.1}
    fakes = Fakes(FakeRouter(scores))
    with logging_to(store.decisions()) as (log, _):
        fakes.gateway._observers = [log]
        for text in scores:
            fakes.chat(text)
    os.renames(store.decisions().path, store.scores("live").path)

    live = store.scores("live").require()
    assert live.read().schema == SCORES
    ids = sorted(prompt_id(text) for text in scores)
    rates = pa.array([0.0] * 4).to_numpy()
    labelled = LabelledQueries(ids, [""] * 4, pa.array(["user"] * 4).to_numpy(zero_copy_only=False), rates, rates, {})
    read = read_scores(store, "live", labelled, [])
    assert dict(zip(ids, read.p_weak, strict=True)) == pytest.approx({prompt_id(text): p for text, p in scores.items()})

    table = live.read()
    threshold = QuantileTable.from_scores(table["p_weak"].to_numpy()).threshold(0.5)
    assert realised_fraction(table["p_weak"].to_numpy(), table["query_id"].to_pylist(), threshold) == 0.5


def test_a_prompt_has_the_name_that_offline_routing_gives_it() -> None:
    prompts = ["Question: Why?\nAnswer: ", "Question: Wie schön?\nAnswer: "]
    named = with_query_ids(pa.table({"prompt": prompts}), prompts, "file")
    assert named["query_id"].to_pylist() == [prompt_id(prompt) for prompt in prompts]


def test_other_programs_read_the_folder_by_day(dataset: Dataset) -> None:
    with logging_to(dataset, rows_per_file=1) as (log, _):
        log.record(exchange_of("a"))
        log.record(exchange_of("b"))
    table = pads.dataset(dataset.path, format="parquet", partitioning="hive").to_table()
    assert len(table) == 2
    assert set(table.column_names) == {*DECISIONS.names, "date"}


# Files ---------------------------------------------------------------------------------------------------------------


def test_files_end_by_number_of_rows_and_at_the_end(dataset: Dataset) -> None:
    with logging_to(dataset, rows_per_file=10) as (log, outcomes):
        for i in range(25):
            log.record(exchange_of(f"{i}"))
        wait_until(lambda: outcomes.written == 20)
    assert (outcomes.written, outcomes.dropped) == (25, 0)
    assert [dataset.open(path).metadata.num_rows for path in dataset.files()] == [10, 10, 5]
    assert [row["query_id"] for row in rows(dataset)] == [prompt_id(f"{i}") for i in range(25)]


def test_a_file_ends_by_time_too(dataset: Dataset) -> None:
    with logging_to(dataset, seconds_per_file=0.05) as (log, outcomes):
        log.record(exchange_of())
        wait_until(lambda: outcomes.written == 1)
        assert len(rows(dataset)) == 1


def test_a_log_without_rows_leaves_no_file(dataset: Dataset) -> None:
    with logging_to(dataset, seconds_per_file=0.01):
        time.sleep(0.1)
    assert dataset.files() == []


def test_replicas_write_into_one_folder_without_losing_a_row(dataset: Dataset) -> None:
    def replica(number: int) -> Outcomes:
        with logging_to(dataset, rows_per_file=7) as (log, outcomes):
            for i in range(500):
                log.record(exchange_of(f"{number}/{i}"))
                if i % 20 == 0:
                    time.sleep(0.01)
        return outcomes

    with ThreadPoolExecutor(4) as replicas:
        outcomes = list(replicas.map(replica, range(4)))
    written = [row["query_id"] for row in rows(dataset)]
    assert len(written) == sum(each.written for each in outcomes)
    assert len(set(written)) == len(written)
    assert sum(each.written + each.dropped for each in outcomes) == 2_000


def test_a_writer_that_is_killed_leaves_nothing_that_a_reader_trips_over(dataset: Dataset) -> None:
    """It is killed while it writes file after file; whatever is there reads, and the next one writes beside it."""
    root = str(Path(dataset.path).parent)
    for num_files in (3, 6, 9):
        with subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, root]) as writer:
            while len(dataset.files()) < num_files:
                assert writer.poll() is None
                time.sleep(0.01)
            writer.send_signal(signal.SIGKILL)
        assert len(rows(dataset)) == 200 * len(dataset.files())


def test_a_half_written_file_is_passed_over(dataset: Dataset) -> None:
    """The writer died between writing and moving into place."""
    with logging_to(dataset) as (log, _):
        log.record(exchange_of())
    whole = Path(dataset.files()[0])
    whole.with_name(f"_{whole.name}.tmp").write_bytes(whole.read_bytes()[:100])
    whole.with_name("_half.parquet").write_bytes(b"PAR1")
    assert len(rows(dataset)) == 1


# When storage fails --------------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """A dataset's `append`, which fails while the disk is `full`."""

    dataset: Dataset
    full: bool = True
    num_tries: int = 0

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.schema

    def append(self, table: pa.Table, name: str) -> None:
        self.num_tries += 1
        if self.full:
            raise StorageFailure("Cannot write: No space left on device.")
        self.dataset.append(table, name)


@pytest.fixture
def disk(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(decision_log, "RETRY_S", 0.02)
    monkeypatch.setattr(decision_log, "LAST_TRY_S", 0.2)
    return Disk(dataset)


def test_rows_wait_until_storage_is_back(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    with logging_to(disk, rows_per_file=2) as (log, outcomes):  # type: ignore[arg-type]
        for i in range(5):
            log.record(exchange_of(f"{i}"))
        wait_until(lambda: disk.num_tries >= 5)
        disk.full = False
    assert [row["query_id"] for row in rows(disk.dataset)] == [prompt_id(f"{i}") for i in range(5)]
    assert (outcomes.written, outcomes.dropped) == (5, 0)
    assert caplog.text.count("No space left on device") == 1  # not once a try


def test_a_full_disk_costs_rows_and_no_request(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """There is room for four files of two rows; the other two are dropped, and at the end, the disk still full, all of them."""
    fakes = Fakes()
    with logging_to(disk, rows_per_file=2) as (log, outcomes):  # type: ignore[arg-type]
        fakes.gateway._observers = [log]
        assert [fakes.chat(f"{i}").status_code for i in range(10)] == [200] * 10
        assert (outcomes.written, outcomes.dropped) == (0, 2)
    assert (outcomes.written, outcomes.dropped) == (0, 10)
    assert "8 rows of the decision log are lost" in caplog.text


def test_a_disk_that_is_full_for_a_moment_at_the_end_costs_no_row(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "LAST_TRY_S", 30.0)
    with logging_to(disk, rows_per_file=2) as (log, outcomes):  # type: ignore[arg-type]
        for i in range(3):
            log.record(exchange_of(f"{i}"))
        wait_until(lambda: disk.num_tries >= 2)
        threading.Timer(0.1, setattr, (disk, "full", False)).start()
    assert (outcomes.written, outcomes.dropped) == (3, 0)


def test_a_disk_that_is_really_full_is_a_storage_failure(tmp_path: Path) -> None:
    """/dev/full takes nothing: every write ends in ENOSPC."""
    log_folder = tmp_path / "decisions" / "day"
    log_folder.mkdir(parents=True)
    (log_folder / "_a.parquet.tmp").symlink_to("/dev/full")
    dataset = ArtifactStore(str(tmp_path)).decisions()
    with pytest.raises(StorageFailure, match="No space left"):
        dataset.append(
            decision_log.table_of([decision_log.row_of(exchange_of(), DECISIONS.names, keep_text=False)], DECISIONS),
            "day/a.parquet",
        )
    assert dataset.files() == []


def test_large_texts_are_bounded_by_their_size(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "MAX_WAITING_CHARACTERS", 1_000)
    with logging_to(disk, keep_text=True) as (log, outcomes):  # type: ignore[arg-type]
        for _ in range(5):
            log.record(exchange_of("x" * 300))
        assert outcomes.dropped == 2
        wait_until(lambda: disk.num_tries >= 1)  # 600 of 1,000 end a file
        disk.full = False
        wait_until(lambda: outcomes.written == 3)
        log.record(exchange_of("x" * 300))  # there is room again
    assert (outcomes.written, outcomes.dropped) == (4, 2)


def test_a_row_that_no_file_can_hold_does_not_stop_those_after_it(dataset: Dataset) -> None:
    with logging_to(dataset, rows_per_file=1) as (log, outcomes):
        log.record(exchange_of(usage=Usage(2**40, 1)))
        log.record(exchange_of(decision=Decision("weak", "score", 0.5, 0.5, "v1", False, 0.3)))  # no query_id
        log.record(exchange_of("fine"))
    assert [row["query_id"] for row in rows(dataset)] == [prompt_id("fine")]
    assert (outcomes.written, outcomes.dropped) == (1, 2)


def test_no_warning_repeats_a_text(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with logging_to(disk, keep_text=True, rows_per_file=1) as (log, _):  # type: ignore[arg-type]
        log.record(exchange_of(CANARY))
    with logging_to(disk.dataset, keep_text=True) as (log, _):
        log.record(exchange_of(CANARY, usage=Usage(2**40, 1)))
    assert "decision log" in caplog.text
    assert CANARY not in caplog.text
