"""What an account has used: days in UTC, and how the life of a VM falls on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

WINDOW_MAX_DAYS = 366


@dataclass(frozen=True, slots=True)
class UsageDay:
    """One day."""

    day: date
    jobs: int
    """Submitted that day."""
    vm_seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What an account has used in a window of days that ends now."""

    window_days: int
    total_jobs: int
    """Submitted in the window: completed, failed and unfinished ones."""
    completed_jobs: int
    failed_jobs: int
    running_jobs: int
    """That have a VM at this moment, whenever they were submitted."""
    storage_bytes: int
    """Of workspaces and uploads, at this moment."""
    by_day: Sequence[UsageDay]
    """All days of the window, the oldest first."""

    @property
    def vm_seconds(self) -> float:
        """Of all days together."""
        return sum(day.vm_seconds for day in self.by_day)


def begin_of(window_days: int, now: datetime) -> datetime:
    """Return when a window of so many days begins that ends with the day of `now`."""
    first = now.astimezone(UTC).date() - timedelta(days=window_days - 1)
    return datetime.combine(first, time(), UTC)


def days_of(window_days: int, now: datetime) -> Sequence[date]:
    """Return the days of a window, the oldest first."""
    first = begin_of(window_days, now).date()
    return [first + timedelta(days=number) for number in range(window_days)]


def seconds_by_day(begin: datetime, end: datetime) -> Mapping[date, float]:
    """Return how many seconds of the time from `begin` to `end` fall on which day."""
    found: dict[date, float] = {}
    while begin < end:
        midnight = datetime.combine(begin.date() + timedelta(days=1), time(), UTC)
        found[begin.date()] = (min(end, midnight) - begin).total_seconds()
        begin = midnight
    return found
