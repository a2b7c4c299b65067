"""Windows of days, and how time falls on them."""

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from magsd.model.usage import begin_of, days_of, seconds_by_day

moments = st.datetimes(
    datetime(2025, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
    datetime(2026, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)


def test_a_window_is_made_of_whole_days_and_today():
    now = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)
    assert days_of(2, now) == [date(2026, 2, 28), date(2026, 3, 1)]
    assert begin_of(2, now) == datetime(2026, 2, 28, tzinfo=UTC)
    assert begin_of(1, now) == datetime(2026, 3, 1, tzinfo=UTC)


@given(moments, st.timedeltas(timedelta(), timedelta(days=40)))
def test_every_second_falls_on_one_day(begin, lasted):
    found = seconds_by_day(begin, begin + lasted)
    assert abs(sum(found.values()) - lasted.total_seconds()) < 1e-3
    assert all(0 < seconds <= 86400 for seconds in found.values())
    assert list(found) == sorted(found)
    if found:
        assert min(found) == begin.date()


def test_what_ends_before_it_begins_takes_no_time():
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert seconds_by_day(now, now - timedelta(days=2)) == {}
