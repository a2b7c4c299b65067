"""The order of the checks, and what is left behind, as a check and as something to clear up."""

import asyncio
import fcntl
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import Clock
from magsd.config import Settings
from magsd.doctor import host, leftovers, slots, storage
from magsd.doctor.check import Check, Verdict
from magsd.doctor.control_groups import control_groups
from magsd.doctor.engines import HELLO, engines, judge_hello
from magsd.doctor.firewall import firewall
from magsd.doctor.leftovers import Leftover
from magsd.doctor.living import living, sees_all
from magsd.doctor.network import RunScript, network
from magsd.doctor.service import service, unit
from magsd.metrics import Metrics
from magsd.model.errors import InvalidError, MagsError

Sandboxes = Callable[[], AbstractAsyncContextManager[RunScript]]

_WATCH_S: Final = 600.0
_SETTLE_S: Final = 1.0

_log: Final = structlog.get_logger()


async def diagnose(
    settings: Settings, clock: Clock, sandboxes: Sandboxes
) -> AsyncGenerator[Check, None]:
    """Yield checks, cheap ones first; those that need a sandbox only where one can run."""
    has_failed = False
    async with aclosing(_before(settings, clock)) as checks:
        async for check in checks:
            has_failed = has_failed or check.verdict is Verdict.FAIL
            yield check
    if has_failed:
        yield Check("sandbox", Verdict.FAIL, "not tried", "mend what fails above")
        return
    try:
        async with sandboxes() as run:
            hello = judge_hello(await run(f"echo {HELLO}"))
            yield hello
            if hello.verdict is Verdict.OK and settings.engine != "fake":
                async for check in network(run):
                    yield check
    except MagsError as error:
        yield Check("sandbox", Verdict.FAIL, f"{error.message} {error.detail}".strip())
    except OSError as error:
        yield Check("sandbox", Verdict.FAIL, f"the host refused: {error}")


async def _before(settings: Settings, clock: Clock) -> AsyncGenerator[Check, None]:
    """Yield the checks that need no sandbox."""
    now = clock.now()
    if settings.engine == "fake":
        yield Check("engine", Verdict.OK, "fake: it runs no program, and needs nothing of the host")
        yield host.versions()
        yield storage.space(settings.data_dir)
        yield await service(settings)
        return
    yield host.root()
    yield host.kernel()
    yield host.versions()
    yield host.memory(settings)
    yield host.limits(settings)
    daemon = living().daemons.get(settings.data_dir.resolve()) if _is_root() else None
    yield host.open_files(daemon, settings)
    yield host.programs()
    if _is_root():
        yield await control_groups(clock)
        yield await storage.loop_devices()
    yield storage.space(settings.data_dir)
    yield storage.disks(settings)
    yield storage.permissions(settings)
    image, built_at = await storage.image(settings, now)
    yield image
    yield host.clock(now, built_at)
    async for check in engines(settings, now):
        yield check
    if _is_root():
        yield await asyncio.to_thread(slots.rules)
    yield await firewall()
    yield await unit()
    yield await service(settings)
    if _is_root():
        for check in await _left_behind(settings.data_dir, clock):
            yield check


def _is_root() -> bool:
    return os.geteuid() == 0


async def _left_behind(data_dir: Path, clock: Clock) -> list[Check]:
    try:
        found = await _settled(data_dir, clock)
    except (MagsError, OSError) as error:
        return [Check("leftovers", Verdict.WARN, f"not looked for: {error}")]
    if not found:
        return [Check("leftovers", Verdict.OK, "nothing is left of sandboxes that ended")]
    return [Check("leftovers", Verdict.WARN, f"{one.kind} {one.name}", _step(one)) for one in found]


async def _settled(data_dir: Path, clock: Clock, but: int | None = None) -> list[Leftover]:
    """Return what is found twice: what begins or ends right now is nobody's leftover."""
    first = await asyncio.to_thread(leftovers.find, data_dir, but)
    if not first:
        return []
    await clock.sleep(_SETTLE_S)
    again = await asyncio.to_thread(leftovers.find, data_dir, but)
    names = {(one.kind, one.name) for one in first}
    return [one for one in again if (one.kind, one.name) in names]


def _step(leftover: Leftover) -> str:
    by_hand = f"`{leftover.command}`"
    return by_hand if leftover.remove is None else f"`magsd doctor --clean`, or {by_hand}"


async def clean(settings: Settings, clock: Clock, say: Callable[[str], None]) -> bool:
    """Remove what is left of sandboxes that ended; return whether nothing is left.

    Raises `InvalidError` where it cannot be known what lives.
    """
    if not _is_root():
        raise InvalidError("magsd doctor --clean must run as root")
    if not sees_all():
        raise InvalidError(
            "this container shares the host's network or control groups, and what uses them "
            "cannot be seen from here: run it on the host"
        )
    with _kept_from_starting(settings.data_dir):
        found = await _settled(settings.data_dir, clock, os.getpid())
        if not found:
            say("nothing is left of sandboxes that ended")
        return await asyncio.to_thread(leftovers.clean, found, say, os.getpid())


@contextmanager
def _kept_from_starting(data_dir: Path) -> Iterator[None]:
    """Keep a daemon of `data_dir` that does not run now from starting inside the block."""
    try:
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        # Held by a daemon that runs: so is all that is its own.
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


async def watch_leftovers(data_dir: Path, metrics: Metrics, clock: Clock) -> None:
    """Count what is left behind, every ten minutes, until cancelled."""
    known: set[str] = set()
    while True:
        try:
            found = await _settled(data_dir, clock)
        except (MagsError, OSError) as error:
            _log.warning("leftovers_not_counted", error=repr(error))
            found = []
        counts = Counter(leftover.kind for leftover in found)
        known |= counts.keys()
        for kind in known:
            metrics.leaked(kind, counts[kind])
        await clock.sleep(_WATCH_S)
