"""The doctor's trial: real scripts in a service of its own, beside the one that may run here."""

import asyncio
import fcntl
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from magsd import doctor, engines
from magsd.aio import Clock, SystemClock
from magsd.app import Say, data_directory, opened, run
from magsd.config import Settings
from magsd.core.application import Application
from magsd.core.log_places import LogPlaces
from magsd.model.errors import CapacityError
from magsd.model.records import JobSpec, LogSource, Principal
from magsd.storage.images import ImageStore

_NET: Final = IPv4Network("198.19.255.224/27")
"""Beside the usual `slot_net`, so that sandboxes can be tried while a service runs."""
_LOCK: Final = Path("/run/mags/doctor.lock")
"""Who holds it has `_NET`: two diagnoses at once would find the other's in use."""
_TURN_S: Final = 90
_TIMEOUT_S: Final = 30


def diagnose(settings: Settings, say: Say, *, as_json: bool = False) -> bool:
    """Say what works here; return whether scripts can run."""
    checks = doctor.diagnose(settings, SystemClock(), lambda: _sandboxes(settings))
    return run(doctor.report(checks, say, as_json=as_json))


def clean(settings: Settings, say: Say) -> bool:
    """Remove what daemons that are gone left on this machine; return whether nothing is left."""
    return run(doctor.clean(settings, SystemClock(), say))


@asynccontextmanager
async def _sandboxes(settings: Settings) -> AsyncIterator[doctor.RunScript]:
    """Hold a service of its own open, beside the one that may run here, with the same images."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="mags-doctor-") as folder:
        own = settings.model_copy(
            update={
                "data_dir": Path(folder),
                "database_url": None,
                "object_store_url": None,
                "slot_net": _NET,
                "pool_min": 0,
                "pool_max": 0,
            }
        )
        images = ImageStore(settings.data_dir)
        async with AsyncExitStack() as stack:
            if not engines.is_simulated(settings):
                await stack.enter_async_context(_turn(clock))
            stack.enter_context(data_directory(own.data_dir))
            own = await engines.lent(settings, own)
            async with opened(own, images, clock) as application:
                secret = await application.access.first_token(None)
                principal = await application.access.authenticate(secret or "")
                try:
                    yield partial(_run_script, application, principal, clock)
                finally:
                    await _given_back(LogPlaces(own.data_dir), clock)


async def _run_script(
    application: Application, principal: Principal, clock: Clock, script: str
) -> doctor.Ran:
    if (reason := application.readiness()) is not None:
        raise CapacityError(reason)
    began = clock.monotonic()
    spec = JobSpec(script, timeout_s=_TIMEOUT_S)
    status = await application.submit(principal, spec)
    while not status.is_final:
        status = await application.status(
            principal, status.request_id, wait_s=60, after_generation=status.generation
        )
    took_s = clock.monotonic() - began
    page = await application.logs(principal, status.request_id)
    lines = [line.message for line in page.lines if line.source is not LogSource.SYSTEM]
    return doctor.Ran(status, "\n".join(lines), took_s)


async def _given_back(places: LogPlaces, clock: Clock) -> None:
    """Return when no VM is left: what a folder that goes now knew would be lost."""
    async with asyncio.timeout(_TIMEOUT_S):
        while places.vms():
            await clock.sleep(0.05)


@asynccontextmanager
async def _turn(clock: Clock) -> AsyncIterator[None]:
    """Be the only trial on this host. Raises `CapacityError` when another takes too long."""
    _LOCK.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _take(lock, clock)
        yield
    finally:
        os.close(lock)


async def _take(lock: int, clock: Clock) -> None:
    try:
        async with asyncio.timeout(_TURN_S):
            while True:
                try:
                    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await clock.sleep(0.2)
    except TimeoutError:
        raise CapacityError(
            "another `magsd doctor` tries sandboxes on this host: try again when it is done"
        ) from None
