"""Which copies of logs are dropped."""

import pytest

from magsd.core.log_copies import ENTRIES_MAX, GRACE_S, IDLE_S, Copies, LogKey
from magsd.model.names import RequestId


def key(number):
    return LogKey(RequestId(str(number)), 1)


@pytest.fixture
def copies():
    copies = Copies(100)
    for number in range(4):
        copies.add(key(number), 25, now=number)
    return copies


def test_what_nobody_read_for_a_while_goes(copies):
    assert not copies.is_over.is_set()
    assert copies.choose(IDLE_S - 1, {}) == []
    copies.use(key(0), now=10)
    assert copies.choose(IDLE_S + 2, {}) == [key(1), key(2)]
    assert copies.choose(IDLE_S + 2, {}) == []


def test_what_takes_too_much_room_goes_the_longest_unused_first(copies):
    copies.use(key(0), now=5)
    copies.add(key(5), 30, now=6)
    assert copies.is_over.is_set()
    assert copies.choose(6 + GRACE_S, {}) == [key(1), key(2)]


def test_what_is_read_stays_until_it_is_let_go(copies):
    held = {key(number) for number in range(5)}
    copies.add(key(4), 200, now=6)
    assert copies.choose(6 + GRACE_S, held) == []
    copies.use(key(4), now=8)
    assert copies.look_again_s() == GRACE_S
    assert copies.choose(7.9 + GRACE_S, {}) == [key(number) for number in range(4)]
    assert copies.choose(8 + GRACE_S, {}) == [key(4)]
    assert copies.look_again_s() > GRACE_S


def test_many_small_ones_are_too_many_and_go_a_few_at_a_time():
    copies = Copies(1 << 40)
    for number in range(ENTRIES_MAX + 60):
        copies.add(key(number), 1, now=0)
    dropped = 0
    while copies.is_over.is_set():
        copies.is_over.clear()
        dropped += len(copies.choose(GRACE_S, {}))
    assert dropped == 60


def test_a_copy_is_counted_once(copies):
    copies.add(key(0), 30, now=5)
    assert copies.is_over.is_set()
    copies.forget(key(0))
    copies.forget(key(0))
    copies.is_over.clear()
    copies.use(key(0), now=6)
    copies.add(key(0), 25, now=7)
    assert not copies.is_over.is_set()
