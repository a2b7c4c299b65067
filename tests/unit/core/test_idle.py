"""When a VM is idle: nobody used it for so long, and it did next to nothing by itself."""

from hypothesis import given
from hypothesis import strategies as st

from magsd.core.idle import Watch
from magsd.core.uses import Uses

SECOND_NS = 1_000_000_000


@given(st.integers(1, 10**6), st.integers(0, 10**15), st.integers(0, 10**15))
def test_who_uses_a_hundredth_of_a_processor_is_busy(idle_s, before_ns, used_ns):
    watch = Watch(1, 100.0, before_ns)
    now = 100.0 + idle_s
    assert watch.is_due(idle_s, now)
    assert not watch.is_due(idle_s + 1, now)
    limit_ns = idle_s * SECOND_NS // 100
    if abs(used_ns - limit_ns) > 10**3:
        assert watch.is_idle(before_ns + used_ns, now) == (used_ns < limit_ns)


def test_a_use_and_another_vm_begin_it_anew():
    watch = Watch(3, 100.0, 0)
    assert watch.holds(3, None)
    assert watch.holds(3, 100.0)
    assert not watch.holds(3, 100.1)
    assert not watch.holds(4, None)


class _Clock:
    at = 0.0

    def monotonic(self):
        return self.at


def test_uses_are_counted_and_their_end_is_remembered():
    clock = _Clock()
    uses = Uses(clock)
    assert (uses.count("job"), uses.ended_at("job")) == (0, None)
    with uses.use("job"):
        clock.at = 1.0
        with uses.use("job"):
            assert uses.count("job") == 2
            assert not uses.close("job")
        assert (uses.count("job"), uses.ended_at("job")) == (1, None)
        clock.at = 2.0
    assert (uses.count("job"), uses.ended_at("job")) == (0, 2.0)
    assert uses.close("job")
    assert uses.is_closed("job")
    with uses.use("job"):
        assert uses.is_closed("job"), "who comes then has to wait"
    uses.open("job")
    assert not uses.is_closed("job")
    uses.forget("job")
    assert uses.ended_at("job") is None
