"""The ledger's laws, and how it is kept: what is told twice counts once, in any order; storage that fails loses nothing."""

import asyncio
import logging
import os
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_server import ENVIRONMENT, empty_root, s3_server
from spending_fakes import Shared, until

from firewall_ray.errors import StorageFailure
from serve_app.money import keeper
from serve_app.money.ledger import ALL, HERE_S, Ledger
from serve_app.money.periods import end_of, name_of

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
DAY, MONTH = "2026-11-27", "2026-11"


def ledger() -> Ledger:
    return Ledger(lambda: NOON)


# What each of three ingress replicas said one after the other: totals that grow.
words = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1_000)), max_size=30)


@given(words, st.randoms(use_true_random=False), st.integers(0, 30))
def test_whatever_is_told_twice_late_or_to_another_counts_once(said: list[tuple[str, int]], rng: Any, cut: int) -> None:
    told: list[tuple[str, int]] = []
    totals = dict.fromkeys("abc", 0)
    for ingress, usd in said:
        totals[ingress] += usd
        told.append((ingress, totals[ingress]))
    order = [*told, *told]
    rng.shuffle(order)
    first, second = ledger(), ledger()
    for i, (ingress, usd) in enumerate(order):
        (first if i < cut else second).settle(ingress, {MONTH: {ALL: float(usd)}}, [ALL])
    third = ledger()
    for each in (first, second, first):
        third.merge(each.saved())
    assert third.spent([ALL]).usd[MONTH][ALL] == sum(totals.values())


def test_sums_are_by_key_and_period_and_old_periods_are_forgotten() -> None:
    now = NOON
    ledger = Ledger(lambda: now)
    ledger.settle("a", {DAY: {"ann": 1.0, ALL: 3.0}, MONTH: {"ann": 10.0, ALL: 30.0}}, None)
    ledger.settle("b", {DAY: {"ann": 2.0, ALL: 4.0}}, None)
    assert ledger.spent().usd == {DAY: {"ann": 3.0, ALL: 7.0}, MONTH: {"ann": 10.0, ALL: 30.0}}
    assert ledger.spent(["bob"]).usd == {DAY: {"bob": 0.0}, MONTH: {"bob": 0.0}}
    now += 24 * 3_600
    assert ledger.spent().usd == {"2026-11-28": {}, MONTH: {"ann": 10.0, ALL: 30.0}}
    assert [list(told["usd"]) for told in ledger.saved().values()] == [[MONTH]]


def test_who_told_nothing_for_a_while_is_not_counted_among_the_ingress_replicas() -> None:
    now = NOON
    ledger = Ledger(lambda: now)
    ledger.settle("a", {}, None)
    now += HERE_S
    assert ledger.settle("b", {}, None).num_ingresses == 2
    now += 1
    assert ledger.settle("b", {}, None).num_ingresses == 1


@given(st.floats(0, 4e9), st.sampled_from(["day", "month"]))
def test_a_period_ends_where_the_next_begins(now: float, period: Any) -> None:
    end = end_of(period, now).timestamp()
    assert 0 < end - now <= (86_400 if period == "day" else 31 * 86_400)
    assert name_of(period, end - 1) == name_of(period, now) < name_of(period, end)


def test_periods_are_utc_and_leap_years_are_known() -> None:
    february = datetime(2028, 2, 28, 23, 59, tzinfo=UTC).timestamp()
    assert [end_of(period, february).day for period in ("day", "month")] == [29, 1]  # type: ignore[arg-type]
    ends = [datetime(2026, month, 15, tzinfo=UTC).timestamp() for month in range(1, 13)]
    assert all(end_of("month", a) < end_of("month", b) for a, b in pairwise(ends))


# Keeping it ----------------------------------------------------------------------------------------------------------


def told(usd: float) -> tuple[str, str, dict[str, Any], None]:
    return "settle", "a", {name_of("month", NOON): {ALL: usd}}, None


def test_it_is_kept_in_a_store_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    async def run(root: str) -> None:
        shared = Shared(root, lambda: NOON)
        await shared.ask(*told(5.0))
        shared.stop()
        shared.start()
        await shared.loaded()
        assert shared.spent_usd() == 5.0
        await until(lambda: len(shared.dataset.files()) == 1)  # the old one's file has gone into the new one's

    with s3_server() as endpoint:
        asyncio.run(run(empty_root(endpoint)))


def test_a_killed_one_loses_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SAVE_EVERY_S", 0.05)

    async def run() -> None:
        shared = Shared(tmp_path, lambda: NOON)
        await shared.ask(*told(5.0))
        await until(shared.is_saved)
        shared.kill()
        shared.start()
        await shared.loaded()
        assert shared.spent_usd() == 5.0

    asyncio.run(run())


def test_storage_that_cannot_be_read_at_first_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who answered before would take for nothing what was spent."""
    monkeypatch.setattr(keeper, "SAVE_EVERY_S", 0.02)
    (tmp_path / "spending").mkdir()
    (tmp_path / "spending" / "old.json").write_text("{")

    async def run() -> None:
        shared = Shared(tmp_path, lambda: NOON)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(shared.loaded(), 0.2)
        (tmp_path / "spending" / "old.json").write_text('{"told": {"gone": {"heard_s": 0, "usd": {"2026-11": {"*": 7.0}}}}}')
        await shared.loaded()
        assert shared.spent_usd() == 7.0

    with caplog.at_level(logging.ERROR, "ray.serve"):
        asyncio.run(run())
    (said,) = [record.getMessage() for record in caplog.records if "spent" in record.getMessage()]
    assert "old.json is not JSON" in said


def test_storage_that_cannot_be_written_loses_nothing_once_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SAVE_EVERY_S", 0.02)

    async def run() -> None:
        shared = Shared(tmp_path, lambda: NOON)
        await shared.loaded()
        write = shared.keeper._write

        def full(*_: Any) -> None:
            raise StorageFailure("no space left")

        monkeypatch.setattr(shared.keeper, "_write", full)
        await shared.ask(*told(5.0))
        await asyncio.sleep(0.1)
        assert not os.listdir(tmp_path)
        monkeypatch.setattr(shared.keeper, "_write", write)
        await until(shared.is_saved)
        shared.kill()
        shared.start()
        await shared.loaded()
        assert shared.spent_usd() == 5.0

    asyncio.run(run())
