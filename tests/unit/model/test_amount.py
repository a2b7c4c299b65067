"""What things take together, and what of it an account may have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.model.amount import Amount
from magsd.model.errors import QuotaError
from magsd.model.quota import Limits, Quota, completed
from magsd.model.records import JobSpec

FIELDS = ("vms", "vcpus", "memory_mb", "disk_gb")
LIMITS = ("jobs_max", "vcpus_max", "memory_mb_max", "disk_gb_max")

counts = st.integers(0, 5)
amounts = st.builds(Amount, counts, counts, counts, counts)
most = st.none() | counts
quotas = st.builds(Quota, most, most, most, most)


def of(amount):
    return [getattr(amount, name) for name in FIELDS]


@given(amounts, amounts, amounts)
def test_what_is_added_can_be_taken_away_in_any_order(one, two, three):
    assert one.plus(two) == two.plus(one)
    assert one.plus(two).plus(three) == one.plus(two.plus(three))
    assert one.plus(two).minus(two) == one
    assert one.minus(one) == Amount()


@given(amounts, amounts, amounts)
def test_what_fits_leaves_no_less_than_nothing_of_what_it_takes(need, room, more):
    lacking = need.lacking(room)
    over = [name for name in FIELDS if getattr(need, name) > getattr(room, name)]
    assert lacking == (over[0] if over else None)
    if lacking is None:
        assert min(of(room.minus(need))) >= 0
        assert need.lacking(room.plus(more)) is None


@given(amounts)
def test_what_takes_nothing_fits_where_less_than_nothing_is_left(need):
    """As after an operator has lowered a limit below what is in use."""
    overdrawn = Amount(-1, -1, -1, -1)
    taken = [name for name in FIELDS if getattr(need, name)]
    assert need.lacking(overdrawn) == (taken[0] if taken else None)


def test_a_run_takes_one_vm_and_what_it_has():
    spec = completed(JobSpec("true", vcpus=2, memory_mb=256, disk_gb=3), Limits())
    assert Amount.of(spec) == Amount(1, 2, 256, 3)


@given(quotas, amounts, amounts)
def test_exactly_what_is_within_every_limit_is_granted(quota, used, need):
    after = of(used.plus(need))
    over = [
        name
        for name, asked, wanted in zip(LIMITS, of(need), after, strict=True)
        # What takes nothing of something always fits.
        if getattr(quota, name) is not None and asked and wanted > getattr(quota, name)
    ]
    if not over:
        quota.check(used, need)
        return
    with pytest.raises(QuotaError, match=f"^{over[0]}: "):
        quota.check(used, need)


@given(quotas, quotas)
def test_an_accounts_own_limits_go_before_the_usual_ones(own, usual):
    both = own.over(usual)
    for name in LIMITS:
        mine = getattr(own, name)
        assert getattr(both, name) == (getattr(usual, name) if mine is None else mine)
    assert own.over(Quota()) == own
    assert both.over(usual) == both
