"""A machine that hangs is booted once more, and no more than that."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from magsd.engine.qemu_boot import HungError, booted, deadline, undone
from magsd.model.errors import LaunchError

SOON_S = 0.01


class Boots:
    """A machine that does what is said each time it is booted; how often that was."""

    def __init__(self, *each: Callable[[], Awaitable[str]]) -> None:
        self.each = list(each)
        self.given_back = 0

    async def __call__(self) -> str:
        try:
            return await self.each.pop(0)()
        except BaseException:
            self.given_back += 1
            raise


async def up() -> str:
    return "up"


async def hang() -> str:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def fail() -> str:
    raise LaunchError("it does not begin", "why")


async def fail_when_cancelled() -> str:
    try:
        return await hang()
    except asyncio.CancelledError:
        raise LaunchError("the emulator does not answer") from None


async def test_what_comes_up_is_booted_once():
    boots = Boots(up, fail)
    assert await booted(boots, 60) == "up"
    assert len(boots.each) == 1


@pytest.mark.parametrize("hangs", [hang, fail_when_cancelled])
async def test_what_hangs_is_booted_again(hangs):
    boots = Boots(hangs, up)
    with capture_logs() as entries:
        assert await booted(boots, SOON_S, image="standard") == "up"
    assert boots.given_back == 1
    (entry,) = entries
    assert (entry["event"], entry["image"], entry["limit_s"]) == ("boot_hung", "standard", SOON_S)


async def test_what_hangs_twice_is_an_error_that_says_what_to_do():
    boots = Boots(hang, hang, up)
    with pytest.raises(HungError, match=r"hung twice, for 0\.01 s each: try again") as failed:
        await booted(boots, SOON_S)
    assert "magsd doctor" in failed.value.message
    assert (boots.given_back, len(boots.each)) == (2, 1)


@pytest.mark.parametrize(("each", "left"), [((fail, up), 1), ((hang, fail, up), 1)])
async def test_what_fails_is_not_booted_again(each, left):
    boots = Boots(*each)
    with pytest.raises(LaunchError, match="it does not begin") as failed:
        await booted(boots, 60 if each[0] is fail else SOON_S)
    assert not isinstance(failed.value, HungError)
    assert len(boots.each) == left


async def test_who_gives_up_gets_no_second_boot():
    boots = Boots(hang, up)
    booting = asyncio.ensure_future(booted(boots, 60))
    await asyncio.sleep(0)
    booting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await booting
    assert (boots.given_back, len(boots.each)) == (1, 1)


async def test_a_deadline_of_others_is_not_ours():
    with pytest.raises(TimeoutError):
        async with deadline(60), asyncio.timeout(SOON_S):
            await hang()


async def test_what_is_undone_is_undone_whole_also_when_cancelled():
    steps = []
    gate = asyncio.Event()

    async def step(number: int) -> None:
        await gate.wait()
        steps.append(number)

    async def work() -> None:
        async with undone() as undo:
            undo.push_async_callback(step, 1)
            undo.push_async_callback(step, 2)

    working = asyncio.ensure_future(work())
    for _ in range(3):
        await asyncio.sleep(0)
        working.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert steps == [2, 1]
