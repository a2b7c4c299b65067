"""Scripted faults of the fake engine."""

import pytest

from magsd.engine.fake.faults import Fault, FaultPlan, Moment
from magsd.model.errors import LaunchError


class _Clock:
    def __init__(self):
        self.slept = []

    async def sleep(self, seconds):
        self.slept.append(seconds)


async def test_faults_come_one_a_call_and_at_their_moment():
    plan, clock = FaultPlan(), _Clock()
    plan.add("launch", Fault(2.0), Fault(error=LaunchError("no"), moment=Moment.END))
    first, second, third = (plan.take("launch") for _ in range(3))
    for moment in Moment:
        await first.come(moment, clock)
        await third.come(moment, clock)
    assert clock.slept == [2.0]
    await second.come(Moment.BEGIN, clock)
    with pytest.raises(LaunchError):
        await second.come(Moment.END, clock)


def test_latency_is_the_same_for_the_same_seed():
    def taken(seed):
        plan = FaultPlan(seed=seed, latency_s={"stop": (1.0, 2.0)})
        return [plan.take("stop").delay_s for _ in range(5)]

    assert taken(1) == taken(1) != taken(2)
    assert all(1.0 <= delay_s <= 2.0 for delay_s in taken(3))
    assert FaultPlan(latency_s={"stop": (1.0, 2.0)}).take("launch").delay_s == 0


def test_what_an_engine_has_not_cannot_fail():
    with pytest.raises(ValueError, match="dance"):
        FaultPlan().add("dance", Fault())
    with pytest.raises(ValueError, match="dance"):
        FaultPlan(latency_s={"dance": (0, 1)})
