"""A live VM's disk as it is at one moment: held still, copied by reference, let go.

Owns the order of that, its deadlines, and how often it is tried. How a VM is
held is its engine's: a `Holding`. Whoever dies in the middle leaves nothing
held: each way of holding ends at its deadline, and with our connection.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

import structlog

from magsd.aio import finish
from magsd.engine import mounts
from magsd.engine.base import Handle
from magsd.engine.vm_host import VmHost
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import LaunchError
from magsd.model.names import VmId

_log: Final = structlog.get_logger()

_HOLDS_S: Final = (0.05, 0.05, 0.05, 0.05, 0.1, 0.2, 0.4)
"""How long a VM is held at most, one try after the other. The first nearly always do: what was
written before is on the disk by then. The last are for a host on which everything takes long."""
_COPY_S: Final = 30.0
"""Where the copy is no reference, it takes as long as there is data; where it is one, as there
are pieces of the image that lie apart, and that are many only where much was written at random."""
_WRITE_OUT_S: Final = 120.0
_ROUNDS_MAX: Final = 5
_SETTLED_S: Final = 0.015
"""What is written out so quickly is so again while the VM is held."""
_ANSWER_S: Final = 5.0
_CLOCK_REALTIME_COARSE: Final = 5
"""From linux/time.h: the clock that files' times are taken from."""
_TICK_S: Final = 0.01
"""Of that clock, at most."""


class Holding(Protocol):
    """How one VM is held still, for one try. All of it may raise `ShimError` and `OSError`."""

    async def write_out(self) -> None:
        """Have what was written so far in the image; the VM goes on meanwhile.

        What is free in it is given back to the host, but no small places: a copy by reference
        takes as long as the image has pieces.
        """

    async def hold(self) -> None:
        """Hold the VM, with all that it has written in the image. Ends at the deadline."""

    async def let_go(self) -> None:
        """Let it go on. Raises `ShimError` where it was let go before."""


Hold: TypeAlias = Callable[[ShimConnection, int], AbstractAsyncContextManager[Holding]]
"""Makes one from a connection of its own and a deadline in milliseconds; its end lets go too."""


class _LateError(Exception):
    """The VM may have gone on before the copy was made, which took `copy_s` seconds."""

    def __init__(self, text: str, copy_s: float) -> None:
        super().__init__(text)
        self.copy_s = copy_s


@dataclass(frozen=True, slots=True)
class Still:
    """An image as it was at one moment."""

    copy: int | None
    """A descriptor of a copy, which goes with it; None where nothing has changed."""
    stamp: str = ""
    """Of the moment; empty where a later write might have the same."""


async def of(host: VmHost, handle: Handle, hold: Hold, since: str = "") -> Still:
    """Return a live VM's image as it is at one moment, or that it is as at the stamp `since`.

    Raises `LookupError` when the VM has no disk any more, `LaunchError`.
    """
    image = host.disks.open(handle.vm)
    try:
        async with asyncio.timeout(_ANSWER_S):
            connection = await ShimConnection.open(handle.run_directory, handle.vm, handle.epoch)
        try:
            if since and await _is_unchanged(image, connection, hold, since):
                return Still(None, since)
            return await _moment(host, handle.vm, image, connection, hold)
        finally:
            await finish(connection.aclose())
    except (ShimError, TimeoutError, _LateError) as error:
        raise LaunchError(
            "the sandbox could not be held still: try again when the host is less busy",
            repr(error),
        ) from error
    finally:
        os.close(image)


async def write_out(host: VmHost, handle: Handle, hold: Hold) -> None:
    """Have a live VM give back to the host what is free on its disk; it goes on meanwhile.

    Raises `ShimError`, `OSError`, `TimeoutError`: nothing is lost then.
    """
    async with asyncio.timeout(_WRITE_OUT_S):
        connection = await ShimConnection.open(handle.run_directory, handle.vm, handle.epoch)
        try:
            async with hold(connection, int(_ANSWER_S * 1000)) as holding:
                await holding.write_out()
        finally:
            await finish(connection.aclose())


async def _is_unchanged(image: int, connection: ShimConnection, hold: Hold, since: str) -> bool:
    """Say whether nothing came into the image since, with all written out now."""
    async with hold(connection, int(_ANSWER_S * 1000)) as holding, asyncio.timeout(_WRITE_OUT_S):
        await holding.write_out()
        return str(os.fstat(image).st_mtime_ns) == since


async def _moment(
    host: VmHost, vm: VmId, image: int, connection: ShimConnection, hold: Hold
) -> Still:
    has_reflinks = host.disks.has_reflinks(vm)
    holds_s = [*(_HOLDS_S if has_reflinks else ()), _COPY_S]
    while holds_s:
        hold_s = holds_s.pop(0)
        try:
            return await _one_try(host, vm, image, connection, hold, hold_s)
        except _LateError as error:
            _log.info("held_too_short", hold_s=hold_s, why=str(error))
            if not holds_s:
                raise
            if error.copy_s > _HOLDS_S[-1]:
                # The image is in so many pieces that none of the short ones will do.
                holds_s = holds_s[-1:]
    raise AssertionError


async def _one_try(
    host: VmHost, vm: VmId, image: int, connection: ShimConnection, hold: Hold, hold_s: float
) -> Still:
    async with hold(connection, int(hold_s * 1000)) as holding:
        async with asyncio.timeout(_WRITE_OUT_S):
            await _settle(host, image, holding)
        copied: list[Still] = []
        try:
            took_s = await _held_copy(host, vm, image, holding, hold_s, copied)
        except BaseException:
            for each in copied:
                assert each.copy is not None
                os.close(each.copy)
            raise
    _log.debug("held", took_s=round(took_s, 4))
    return copied[0]


async def _held_copy(
    host: VmHost, vm: VmId, image: int, holding: Holding, hold_s: float, copied: list[Still]
) -> float:
    """Copy the image while the VM is held, and return for how many seconds it was.

    Raises `_LateError` where the deadline came first.
    """
    clock = host.clock
    began = clock.monotonic()
    async with asyncio.timeout(_ANSWER_S + hold_s):
        await holding.hold()
    held = clock.monotonic()
    await finish(asyncio.to_thread(_copy, host, vm, image, copied))
    done = clock.monotonic()
    late = _LateError(
        f"holding took {held - began:.3f} s, the copy {done - held:.3f} s", done - held
    )
    try:
        async with asyncio.timeout(_ANSWER_S):
            await holding.let_go()
    except ShimError:
        if done - began >= hold_s:  # It was let go before, as it must.
            raise late from None
        raise
    if done - began >= hold_s:
        raise late
    return done - began


async def _settle(host: VmHost, image: int, holding: Holding) -> None:
    """Write out until there is next to nothing to write."""
    for _ in range(_ROUNDS_MAX):
        began = host.clock.monotonic()
        await holding.write_out()
        await finish(asyncio.to_thread(mounts.write_out, image))
        if host.clock.monotonic() - began < _SETTLED_S:
            return


def _copy(host: VmHost, vm: VmId, image: int, copied: list[Still]) -> None:
    copied.append(Still(host.disks.copy_unnamed(vm, image)))
    copied[0] = replace(copied[0], stamp=_stamp(image))


def _stamp(image: int) -> str:
    """Return what is another after the next write, unless that may come within the same tick.

    All that the host writes into a file gets the time of the last tick. Where the
    guest's own kernel writes when it is let go, every moment is another.
    """
    written_ns = os.fstat(image).st_mtime_ns
    if time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= written_ns:
        time.sleep(_TICK_S)
    is_past = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) > written_ns
    return str(written_ns) if is_past else ""
