"""Limited room: never more out than there is, and each account in its turn."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from magsd.core.room import Room
from magsd.model.amount import Amount

ONE = Amount(vms=1)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that wait for a slot and note in which order they got one."""

    def __init__(self, room: Room, need: Amount = ONE) -> None:
        self.room = room
        self.need = need
        self.served: list[str] = []
        self.tasks: list[asyncio.Task] = []

    async def ask(self, *names: str) -> None:
        for name in names:
            self.tasks.append(asyncio.create_task(self._get(name)))
        await settle()

    async def _get(self, name: str) -> None:
        await self.room.acquire(name[0], self.need)
        self.served.append(name)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_accounts_take_turns_and_each_in_its_order():
    room = Room(Amount(vms=1))
    crowd = Crowd(room)
    await crowd.ask("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    for _ in range(6):
        room.release(ONE)
        await settle()
    assert crowd.served == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_what_is_there_already_counts_whatever_the_limit_says():
    room = Room(Amount(vms=1))
    room.occupy(ONE)
    room.occupy(ONE)
    crowd = Crowd(room)
    await crowd.ask("a1")
    room.release(ONE)
    await settle()
    assert not crowd.served
    room.release(ONE)
    await settle()
    assert crowd.served == ["a1"]


async def test_a_slot_given_to_one_who_leaves_goes_to_the_next():
    room = Room(Amount(vms=0))
    crowd = Crowd(room)
    await crowd.ask("a1", "b1")
    room.release(ONE)
    crowd.tasks[0].cancel()
    await settle()
    assert crowd.served == ["b1"]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("abc")),
        st.tuples(st.just("release"), st.just("")),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(st.integers(1, 3), actions)
def test_never_more_are_out_than_there_are_and_nobody_waits_in_vain(count, script):
    async def play() -> None:
        room, crowd, out = Room(Amount(vms=count)), None, 0
        crowd = Crowd(room)
        for action, argument in script:
            if action == "ask":
                await crowd.ask(argument)
            elif action == "release" and len(crowd.served) > out:
                out += 1
                room.release(ONE)
            elif action == "cancel" and argument < len(crowd.tasks):
                crowd.tasks[argument].cancel()
            await settle()
            held = len(crowd.served) - out
            assert held <= count
            waiting = sum(not task.done() for task in crowd.tasks)
            assert not waiting or held == count
        await crowd.leave()

    asyncio.run(play())


async def test_a_large_one_is_not_overtaken_for_ever():
    room = Room(Amount(vms=9, memory_mb=1000))
    small, large = Amount(vms=1, memory_mb=300), Amount(vms=1, memory_mb=900)
    for _ in range(3):
        assert room.try_acquire(small)
    first, others = Crowd(room, large), Crowd(room, small)
    await first.ask("a1")
    await others.ask("b1", "c1")
    # There is room for a small one, but it is not its turn; nor may one that comes now.
    assert not others.served
    assert not room.try_acquire(Amount(vms=1, memory_mb=1))
    for _ in range(3):
        room.release(small)
        await settle()
    assert (first.served, others.served) == (["a1"], [])
    room.release(large)
    await settle()
    assert others.served == ["b1", "c1"]


async def test_who_leaves_no_longer_stands_in_the_way():
    room = Room(Amount(vms=2, disk_gb=10))
    assert room.try_acquire(Amount(1, disk_gb=5))
    large, small = Crowd(room, Amount(1, disk_gb=9)), Crowd(room, Amount(1, disk_gb=5))
    await large.ask("a1")
    await small.ask("b1")
    large.tasks[0].cancel()
    await settle()
    assert small.served == ["b1"]
    assert room.waiting == 0


async def test_work_that_can_wait_goes_last():
    room = Room(ONE)
    assert room.try_acquire(ONE)
    patient = asyncio.create_task(room.acquire_at_rest(ONE))
    await settle()
    crowd = Crowd(room)
    await crowd.ask("a1", "b1")
    for expected in (["a1"], ["a1", "b1"]):
        room.release(ONE)
        await settle()
        assert crowd.served == expected
        assert not patient.done()
    room.release(ONE)
    await settle()
    assert patient.done()
    assert not room.try_acquire(ONE)


async def test_patient_work_that_is_given_up_takes_nothing():
    room = Room(ONE)
    assert room.try_acquire(ONE)
    waiting, served = [asyncio.create_task(room.acquire_at_rest(ONE)) for _ in range(2)]
    await settle()
    waiting.cancel()
    await settle()
    room.release(ONE)
    served.cancel()  # In the moment in which it has got it.
    await settle()
    assert room.try_acquire(ONE)


def test_what_lacks_is_named_and_nothing_never_lacks():
    room = Amount(vms=1, vcpus=2, memory_mb=-5, disk_gb=0)
    assert Amount(vms=1, vcpus=2).lacking(room) is None
    assert Amount(vms=1, vcpus=3).lacking(room) == "vcpus"
    assert Amount(memory_mb=1).lacking(room) == "memory_mb"
    assert Amount(disk_gb=1).lacking(room) == "disk_gb"
