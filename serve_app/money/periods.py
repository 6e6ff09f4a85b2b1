"""The days and months that money is counted by, in UTC. Runs on ingress replicas and on the shared one."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

Period = Literal["day", "month"]
PERIODS: tuple[Period, ...] = ("day", "month")

KEPT_AFTER_S = 3_600.0  # what was spent at the end of a period may be heard of, and clocks are compared, after it


def name_of(period: Period, now_s: float) -> str:
    """now_s: Unix seconds. Names sort as their times do.

    >>> name_of("day", 1_700_000_000), name_of("month", 1_700_000_000)
    ('2023-11-14', '2023-11')
    """
    return _name_of(period, int(now_s // 60))


@lru_cache(maxsize=8)  # several times a request; all of these change at whole minutes
def _name_of(period: Period, minute: int) -> str:
    return f"{datetime.fromtimestamp(60 * minute, UTC):{'%Y-%m-%d' if period == 'day' else '%Y-%m'}}"


def end_of(period: Period, now_s: float) -> datetime:
    """When the next one begins.

    >>> end_of("month", 1_700_000_000).isoformat()
    '2023-12-01T00:00:00+00:00'
    """
    day = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day + timedelta(days=1) if period == "day" else (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def kept(now_s: float) -> set[str]:
    """Names of the periods that are not over, or just over."""
    return {name_of(period, at) for period in PERIODS for at in (now_s, now_s - KEPT_AFTER_S)}
