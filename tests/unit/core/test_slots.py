"""A limited number of slots: never more out than there are, and each account in its turn."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from magsd.core.slots import Slots


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that wait for a slot and note in which order they got one."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.served: list[str] = []
        self.tasks: list[asyncio.Task] = []

    async def ask(self, *names: str) -> None:
        for name in names:
            self.tasks.append(asyncio.create_task(self._get(name)))
        await settle()

    async def _get(self, name: str) -> None:
        await self.slots.acquire(name[0])
        self.served.append(name)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_accounts_take_turns_and_each_in_its_order():
    slots = Slots(1)
    crowd = Crowd(slots)
    await crowd.ask("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    for _ in range(6):
        slots.release()
        await settle()
    assert crowd.served == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_what_is_there_already_counts_whatever_the_limit_says():
    slots = Slots(1)
    slots.occupy()
    slots.occupy()
    crowd = Crowd(slots)
    await crowd.ask("a1")
    slots.release()
    await settle()
    assert not crowd.served
    slots.release()
    await settle()
    assert crowd.served == ["a1"]


async def test_a_slot_given_to_one_who_leaves_goes_to_the_next():
    slots = Slots(0)
    crowd = Crowd(slots)
    await crowd.ask("a1", "b1")
    slots.release()
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
        slots, crowd, out = Slots(count), None, 0
        crowd = Crowd(slots)
        for action, argument in script:
            if action == "ask":
                await crowd.ask(argument)
            elif action == "release" and len(crowd.served) > out:
                out += 1
                slots.release()
            elif action == "cancel" and argument < len(crowd.tasks):
                crowd.tasks[argument].cancel()
            await settle()
            held = len(crowd.served) - out
            assert held <= count
            waiting = sum(not task.done() for task in crowd.tasks)
            assert not waiting or held == count
        await crowd.leave()

    asyncio.run(play())
