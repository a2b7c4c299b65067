"""Machines that must come up in time: a deadline for each try, and how often is tried.

Owns what is done about a machine that hangs. A kernel that is emulated on a
busy host may spin for ever while it measures its clocks: such a boot is ended,
and tried once more. What a machine is, and what follows when it does not come
up, is for others.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar

import structlog

from magsd.aio import finish
from magsd.engine import run_directory
from magsd.engine.vm_launch import Launched, VmLaunch
from magsd.model.errors import LaunchError

_Result = TypeVar("_Result")
_log: Final = structlog.get_logger()


class HungError(LaunchError):
    """A machine did not come up in its time."""


class CloneError(LaunchError):
    """A machine could not go on from its template. Booted, it may come up."""


@asynccontextmanager
async def deadline(limit_s: float) -> AsyncIterator[None]:
    """Cancel the block after `limit_s` seconds, and raise `HungError` then."""
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            yield
    except (TimeoutError, LaunchError) as error:
        # What fails because it is cancelled has hung as well.
        if not limit.expired():
            raise
        text = f"the microVM did not come up within {limit_s:g} s"
        raise HungError(text, repr(error)) from error


async def booted(boot: Callable[[], Awaitable[_Result]], limit_s: float, **told: str) -> _Result:
    """Return what `boot` does; one that takes longer than `limit_s` is begun once more.

    `boot` gives everything back when it fails or is cancelled. `told`: for the
    log. Raises `HungError` when the second hangs too.
    """
    try:
        async with deadline(limit_s):
            return await boot()
    except HungError:
        _log.warning("boot_hung", limit_s=limit_s, **told)
    try:
        async with deadline(limit_s):
            return await boot()
    except HungError as error:
        raise HungError(
            f"the microVM's kernel hung twice, for {limit_s:g} s each: try again when the host "
            "is less busy, or use another engine; `magsd doctor` says what works here",
            error.detail,
        ) from error


async def tried(launch: VmLaunch, undo: AsyncExitStack) -> Launched:
    """Do one launch of possibly several of the same VM.

    When it fails, or is cancelled, everything is given back at once and the run
    directory is as before; else `undo` gets all that. Raises as `VmLaunch.run`.
    """
    own = AsyncExitStack()
    try:
        own.callback(run_directory.make(launch.run_directory))
        launched = await launch.run(own)
    except BaseException:
        await finish(own.aclose())
        raise
    undo.push_async_exit(own)
    return launched


@asynccontextmanager
async def undone() -> AsyncIterator[AsyncExitStack]:
    """Have a stack that is unwound to its end, also when the block or that is cancelled."""
    undo = AsyncExitStack()
    try:
        yield undo
    finally:
        await finish(undo.aclose())
