"""Counts that rise, for those who listen."""

import asyncio

from magsd.core.pulse import Pulses


async def test_a_beat_between_two_looks_is_not_missed():
    pulses = Pulses()
    with pulses.listen("key") as pulse:
        seen = pulse.count
        pulses.beat("key")
        pulses.beat("other")
        await pulse.changed(seen)
        waiting = asyncio.create_task(pulse.changed(pulse.count))
        await asyncio.sleep(0)
        assert not waiting.done()
        pulses.beat("key")
        await waiting


async def test_every_listener_is_woken_and_the_last_to_leave_clears_up():
    pulses = Pulses()
    pulses.beat("key")
    with pulses.listen("key") as first:
        with pulses.listen("key") as second:
            waiting = [asyncio.create_task(each.changed(0)) for each in (first, second)]
            await asyncio.sleep(0)
            pulses.beat("key")
            await asyncio.gather(*waiting)
        assert len(pulses._by_key) == 1
    assert not pulses._by_key
