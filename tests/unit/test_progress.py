"""How far a stage is, where workers die and their successors count the same rows again."""

import pytest

from firewall_ray.progress import _completed, _Meter


@pytest.mark.parametrize(("rows", "completed"), [(0, 40), (59, 99), (60, 100), (75, 100)])
def test_rows_that_are_counted_twice_never_exceed_the_total(rows: int, completed: int) -> None:
    assert _completed(100, 40, {"rows": rows}) == completed


def test_rates_begin_with_the_first_row_and_stand_still_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr("firewall_ray.progress.time.monotonic", lambda: next(now))
    meter = _Meter(50)
    assert meter.describe({}) == "starting"
    assert meter.describe({"rows": 10, "tokens": 100}) == "started"
    assert meter.describe({"rows": 30, "tokens": 400, "errors": 2}) == "2.0 rows/s, 30 tokens/s, 2 errors"
    assert meter.rows_per_s == 2.0
    last = meter.describe({"rows": 50, "tokens": 500, "errors": 2})  # 40 rows and 400 tokens in 20 s
    assert last == meter.describe({"rows": 50, "tokens": 500, "errors": 2}) == "2.0 rows/s, 20 tokens/s, 2 errors"
