"""Offsets, credit and ends, against what a hostile far end may send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.guest.channels import Inbound, Outbound
from magsd.guest.wire import WINDOW_BYTES, WireError


def test_what_is_taken_is_read_in_order():
    inbound = Inbound()
    inbound.take(0, b"ab")
    inbound.take(2, b"c")
    inbound.take(3, b"")
    assert inbound
    assert inbound.read() == b"abc"
    assert not inbound
    inbound.take_end(3)
    assert inbound.is_ended


@pytest.mark.parametrize("offset", [0, 1, 3, 2**64 - 1])
def test_data_that_does_not_follow_is_an_offence(offset):
    inbound = Inbound()
    inbound.take(0, b"ab")
    with pytest.raises(WireError, match="expected at 2"):
        inbound.take(offset, b"c")


def test_data_beyond_the_credit_is_an_offence():
    inbound = Inbound()
    inbound.take(0, bytes(WINDOW_BYTES))
    with pytest.raises(WireError, match="granted"):
        inbound.take(WINDOW_BYTES, b"x")


def test_ends():
    inbound = Inbound()
    inbound.take(0, b"ab")
    with pytest.raises(WireError, match="after 2"):
        inbound.take_end(3)
    inbound.take_end(2)
    with pytest.raises(WireError, match="after the end"):
        inbound.take(2, b"c")
    with pytest.raises(WireError, match="second end"):
        inbound.take_end(2)
    assert inbound.read() == b"ab"
    assert inbound.grant() is None


@given(st.lists(st.one_of(st.none(), st.integers(0, WINDOW_BYTES)), max_size=60))
def test_a_far_end_that_keeps_to_its_credit_is_never_stuck(steps):
    """None reads; a number sends so much of what is allowed."""
    inbound = Inbound()
    sent = read = 0
    limit = WINDOW_BYTES
    for step in steps:
        if step is None:
            read += len(inbound.read())
            limit = inbound.grant() or limit
            assert limit - read > WINDOW_BYTES // 2
        else:
            count = min(step, limit - sent)
            inbound.take(sent, bytes(count))
            sent += count
        assert sent - read <= WINDOW_BYTES
        assert limit - read <= WINDOW_BYTES


def test_credit():
    outbound = Outbound()
    assert outbound.room == WINDOW_BYTES
    outbound.sent += WINDOW_BYTES
    assert outbound.room == 0
    outbound.take_credit(WINDOW_BYTES)
    outbound.take_credit(2**64 - 1)
    assert outbound.room == 2**64 - 1 - WINDOW_BYTES
    with pytest.raises(WireError, match="CREDIT"):
        outbound.take_credit(WINDOW_BYTES)
