"""From a claimed run to a script that runs: every step with its undo.

Owns what a VM is and what is told to it, whether it was launched for the run
or waited for one. Which run gets a VM and when is the actor's part, which VMs
wait the pool's; how a VM comes to be is the engine's.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import Clock, finish
from magsd.core.placed_files import LocalFile, place_files, placing_s
from magsd.core.settings import CoreSettings
from magsd.engine.base import Capabilities, Engine, Handle, Plan
from magsd.guest import identity, streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.state import read_stream
from magsd.guest.wire import pack_fields
from magsd.model.errors import LaunchError, NotFoundError
from magsd.model.names import VmId
from magsd.model.records import RunSpec
from magsd.storage.images import Image, ImageStore

SCRIPT_STREAM: Final = 1
"""The durable stream of a job's script."""
STARTUP_STREAM: Final = 2
"""That of the command which is run when a job is woken by a start."""

HOME: Final = "/root"
"""Where scripts and commands begin."""
_SCRIPT_PATH: Final = "/run/mags/script"
_STARTUP_PATH: Final = "/run/mags/startup"
_SCRIPT_MODE: Final = 0o700
_CA_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": HOME,
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/sh",
    "LANG": "C.UTF-8",
    "SSL_CERT_FILE": _CA_BUNDLE,
    "REQUESTS_CA_BUNDLE": _CA_BUNDLE,
    "CURL_CA_BUNDLE": _CA_BUNDLE,
    "PIP_CERT": _CA_BUNDLE,
    "NODE_EXTRA_CA_CERTS": _CA_BUNDLE,
}
_LAUNCH_S: Final = 60.0
_BEGIN_S: Final = 15.0
_WARM_UP: Final = """\
/bin/true & /bin/true & wait
/bin/true | /bin/true
command -v python3 >/dev/null && python3 -c pass
:
"""
"""Does once what most scripts do. A shell alone would leave them half cold: a script that calls
`ls` ends after 40 ms instead of 55, a start of Python after 50 instead of 80 (measured, gVisor)."""
_WARM_UP_COPY: Final = "/bin/true | /bin/true\n"
"""For a VM that went on from one that has done all that. What is left is the emulator's own: it
translates the code of a shell and of what starts programs."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shape:
    """What makes VMs alike: one that was launched for it may serve any job of it."""

    engine: str
    image: str
    layers: tuple[Path, ...]
    """Lowest first: the image's, and a workspace's above."""
    vcpus: int
    memory_mb: int
    disk_gb: int
    own_layers: int = 0
    """How many of the layers, the highest, are a workspace's."""


def image_of(spec: RunSpec, images: ImageStore, settings: CoreSettings) -> Image:
    """Return the image that `rootfs_type` means. Raises `NotFoundError` that lists the known."""
    is_standard = spec.rootfs_type == "standard"
    return images.get(settings.standard_image if is_standard else spec.rootfs_type)


def shape_of(engine: str, spec: RunSpec, images: ImageStore, settings: CoreSettings) -> Shape:
    """Return what a VM for `spec` is to be like. Raises `LaunchError` without its image."""
    try:
        image = image_of(spec, images, settings)
    except NotFoundError as error:
        raise LaunchError(error.message, error.detail) from error
    return Shape(engine, image.name, image.layers, spec.vcpus, spec.memory_mb, spec.disk_gb)


async def plan_of(
    vm: VmId, epoch: int, shape: Shape, images: ImageStore, settings: CoreSettings
) -> Plan:
    """Decide what a VM of `shape` is, and check that its image is whole.

    The layers of one that begins from a workspace were looked at when they were brought.
    """
    if not shape.own_layers:
        await images.verify(shape.image, shape.layers)
    return Plan(
        vm=vm,
        epoch=epoch,
        image=shape.image,
        layers=shape.layers,
        hostname=f"mags-{vm}",
        vcpus=shape.vcpus,
        memory_mb=shape.memory_mb,
        disk_gb=shape.disk_gb,
        own_layers=shape.own_layers,
        pids_limit=settings.pids_limit,
        log_rate_bytes=settings.log_rate_bytes,
        log_burst_bytes=settings.log_burst_bytes,
    )


async def start(
    engine: Engine, plan: Plan, spec: RunSpec, clock: Clock, files: Sequence[LocalFile] = ()
) -> ShimConnection:
    """Launch a VM and begin the script in it, which finds `files`; return a connection that
    follows it.

    Raises `LaunchError`, and then nothing of the VM is left. Where the script
    may have had effects already, on another error or a cancellation, the VM is
    left alone: it is found again by its claim.
    """
    handle = await launched(engine, plan)
    async with _beginning(engine, handle, files) as attempt, AsyncExitStack() as undo:
        connection = await ShimConnection.open(handle.run_directory)
        undo.push_async_callback(connection.aclose)
        await asyncio.gather(
            identity.introduce(connection, plan.hostname, clock.now()),
            _hand_over(connection, spec.script),
            place_files(connection, files),
        )
        attempt.is_asked = True
        await _begin(connection, spec, deadline_s=spec.timeout_s or 0)  # 0: none
        undo.pop_all()
    return connection


async def resume(engine: Engine, plan: Plan, snapshot: Path, *, line: str) -> ShimConnection:
    """Have a VM go on from its memory and tell its log `line`; return a connection.

    On failure (`LaunchError`) or cancellation the VM is no more, and its disk stays.
    """
    try:
        async with asyncio.timeout(_LAUNCH_S):
            handle = await engine.restore(snapshot, plan)
    except TimeoutError as error:
        raise LaunchError(f"it did not go on within {_LAUNCH_S:.0f} s") from error
    async with _kept_on_failure(engine, handle) as connection:
        await connection.request("note", text=line)
    return connection


@asynccontextmanager
async def _kept_on_failure(engine: Engine, handle: Handle) -> AsyncIterator[ShimConnection]:
    """Connect to a VM, which is stopped, its disk kept, when the block fails."""
    try:
        async with asyncio.timeout(_BEGIN_S), AsyncExitStack() as undo:
            connection = await ShimConnection.open(handle.run_directory)
            undo.push_async_callback(connection.aclose)
            yield connection
            undo.pop_all()
    except BaseException as error:
        await finish(engine.stop(handle, keep_changes=True))
        if isinstance(error, ShimError | OSError | TimeoutError):
            raise LaunchError("the VM could not be made ready", repr(error)) from error
        raise


async def start_again(
    engine: Engine, plan: Plan, spec: RunSpec, clock: Clock, *, startup_command: str, line: str
) -> ShimConnection:
    """Launch a VM for a job that has lived before, tell its log `line`, and begin its
    `startup_command`, if there is one; return a connection.

    On failure (`LaunchError`) or cancellation the VM is no more, and its disk stays.
    """
    handle = await launched(engine, plan)
    async with _kept_on_failure(engine, handle) as connection:
        await identity.introduce(connection, plan.hostname, clock.now())
        if spec.files:
            names = [file.name for file in spec.files]
            await streams.control(connection, "uploads", name=names)
        await connection.request("note", text=line)
        if startup_command:
            content = startup_command.encode("utf-8")
            await streams.write_file(connection, _STARTUP_PATH, content, mode=_SCRIPT_MODE)
            await _begin(connection, spec, STARTUP_STREAM, _STARTUP_PATH, deadline_s=0)
    return connection


async def begin(
    engine: Engine,
    handle: Handle,
    connection: ShimConnection,
    spec: RunSpec,
    clock: Clock,
    files: Sequence[LocalFile] = (),
) -> None:
    """Claim a VM that `hold` made ready, with the same connection, and begin the script in it.

    Raises as `start` does; the connection is closed then.
    """
    async with _beginning(engine, handle, files) as attempt, AsyncExitStack() as undo:
        undo.push_async_callback(connection.aclose)
        # Sent together: the shim thaws the VM before it forwards the rest.
        steps = [
            connection.request("claim"),
            _hand_over(connection, spec.script),
            place_files(connection, files),
        ]
        if engine.capabilities.template:
            # It counts time by itself, and the host's clock may have been set since it was told.
            steps.append(identity.set_clock(connection, clock.now()))
        await asyncio.gather(*steps)
        attempt.is_asked = True
        await _begin(connection, spec, deadline_s=spec.timeout_s or 0)  # 0: none
        undo.pop_all()


@dataclass(slots=True)
class _Attempt:
    is_asked: bool = False
    """The script was sent for; it may begin although nobody has said so yet."""


@asynccontextmanager
async def _beginning(
    engine: Engine, handle: Handle, files: Sequence[LocalFile]
) -> AsyncIterator[_Attempt]:
    """Have a VM that is stopped when the block fails, unless its script may have begun."""
    attempt = _Attempt()
    try:
        async with asyncio.timeout(_BEGIN_S + placing_s(files)):
            yield attempt
    except (ShimError, OSError, TimeoutError) as error:
        if not _has_begun(handle):
            await finish(engine.stop(handle))
        # Once the VM has ended, it is certain.
        if _has_begun(handle):
            raise
        raise LaunchError("the VM could not take the script", repr(error)) from error
    except BaseException:
        if not attempt.is_asked:
            await finish(engine.stop(handle))
        raise


async def hold(connection: ShimConnection, hostname: str, clock: Clock) -> None:
    """Make a VM that was just launched fit for any script; it ends with `connection`
    until it is claimed.

    It learns who it is now and not at the claim: it will serve one script only.
    Raises `ShimError` and `TimeoutError`.
    """
    async with asyncio.timeout(_BEGIN_S):
        await connection.request("hold")
        await identity.introduce(connection, hostname, clock.now())


async def warm(connection: ShimConnection, capabilities: Capabilities) -> None:
    """Bring what a script needs into a held VM's memory, then freeze it until it is claimed.

    Where there is no freezer it waits running: `doctor` says what that costs.
    Raises `ShimError` and `TimeoutError`.
    """
    async with asyncio.timeout(_BEGIN_S):
        await _hand_over(connection, _WARM_UP_COPY if capabilities.template else _WARM_UP)
        argv = ["/bin/sh", _SCRIPT_PATH]
        await streams.run(connection, argv, environment=_ENVIRONMENT, cwd=HOME)
    try:
        await connection.request("freeze", deadline_ms="0")
    except ShimError as error:
        _log.debug("not_frozen", error=str(error))


async def launched(engine: Engine, plan: Plan) -> Handle:
    """Launch a VM within the time that a launch may take. Raises `LaunchError`."""
    try:
        async with asyncio.timeout(_LAUNCH_S):
            return await engine.launch(plan)
    except TimeoutError as error:
        text = f"no VM came up within {_LAUNCH_S:.0f} s: the host may be overloaded"
        raise LaunchError(text) from error


async def _hand_over(connection: ShimConnection, script: str) -> None:
    content = script.encode("utf-8")
    await streams.write_file(connection, _SCRIPT_PATH, content, mode=_SCRIPT_MODE)


async def _begin(
    connection: ShimConnection,
    spec: RunSpec,
    stream: int = SCRIPT_STREAM,
    path: str = _SCRIPT_PATH,
    *,
    deadline_s: float,
) -> None:
    environment = environment_of(spec.environment)
    fields = [("arg", "/bin/sh"), ("arg", path), ("cwd", HOME)]
    fields += [("env", f"{name}={value}") for name, value in environment.items()]
    await connection.open_durable(stream, pack_fields("exec", fields), deadline_s)


def environment_of(asked: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment of a job's script, and of every other command in its VM."""
    return {**_ENVIRONMENT, **asked}


def _has_begun(handle: Handle) -> bool:
    return read_stream(handle.run_directory, SCRIPT_STREAM) is not None
