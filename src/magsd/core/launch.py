"""From a claimed run to a script that runs: every step with its undo.

Owns what a VM is and what is told to it. Which run gets a VM and when is the
actor's part; how a VM comes to be is the engine's.
"""

import asyncio
import secrets
from contextlib import AsyncExitStack
from typing import Final

from magsd.aio import Clock, finish
from magsd.core.settings import CoreSettings
from magsd.engine.base import Engine, Handle, Plan
from magsd.guest import streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.state import read_stream
from magsd.guest.wire import pack_fields
from magsd.model.errors import LaunchError, NotFoundError
from magsd.model.names import VmId
from magsd.model.records import RunSpec
from magsd.storage.images import Image, ImageStore

SCRIPT_STREAM: Final = 1
"""The durable stream of a job's script."""

_SCRIPT_PATH: Final = "/run/mags/script"
_SCRIPT_MODE: Final = 0o700
_CA_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
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
_ENTROPY_BYTES: Final = 64


def image_of(spec: RunSpec, images: ImageStore, settings: CoreSettings) -> Image:
    """Return the image that `rootfs_type` means. Raises `NotFoundError` that lists the known."""
    is_standard = spec.rootfs_type == "standard"
    return images.get(settings.standard_image if is_standard else spec.rootfs_type)


async def plan_of(
    vm: VmId, epoch: int, spec: RunSpec, images: ImageStore, settings: CoreSettings
) -> Plan:
    """Decide what a VM for `spec` is, and check that its image is whole."""
    try:
        image = image_of(spec, images, settings)
    except NotFoundError as error:
        raise LaunchError(error.message, error.detail) from error
    await images.verify(image)
    return Plan(
        vm=vm,
        epoch=epoch,
        image=image.name,
        layers=image.layers,
        hostname=f"mags-{vm}",
        vcpus=spec.vcpus,
        memory_mb=spec.memory_mb,
        disk_gb=spec.disk_gb,
        pids_limit=settings.pids_limit,
    )


async def start(engine: Engine, plan: Plan, spec: RunSpec, clock: Clock) -> ShimConnection:
    """Launch a VM and begin the script in it; return a connection that follows it.

    Raises `LaunchError`, and then nothing of the VM is left. Where the script
    may have had effects already, on another error or a cancellation, the VM is
    left alone: it is found again by its claim.
    """
    async with AsyncExitStack() as undo:
        handle = await _launched(engine, plan)
        undo.push_async_callback(_stop_unless_begun, engine, handle)
        try:
            async with asyncio.timeout(_BEGIN_S):
                connection = await ShimConnection.open(handle.run_directory)
                undo.push_async_callback(connection.aclose)
                await _introduce(connection, plan, spec, clock)
                await _begin(connection, spec)
        except (ShimError, OSError, TimeoutError) as error:
            if _has_begun(handle):
                raise
            raise LaunchError("the VM could not take the script", repr(error)) from error
        undo.pop_all()
    return connection


async def _launched(engine: Engine, plan: Plan) -> Handle:
    try:
        async with asyncio.timeout(_LAUNCH_S):
            return await engine.launch(plan)
    except TimeoutError as error:
        text = f"no VM came up within {_LAUNCH_S:.0f} s: the host may be overloaded"
        raise LaunchError(text) from error


async def _introduce(connection: ShimConnection, plan: Plan, spec: RunSpec, clock: Clock) -> None:
    """Tell the VM who and when it is, and hand the script over, in one round trip."""
    await asyncio.gather(
        streams.control(
            connection,
            "identity",
            hostname=plan.hostname,
            machine_id=secrets.token_hex(16),
            clock_ns=str(int(clock.now().timestamp() * 1e9)),
            entropy=secrets.token_hex(_ENTROPY_BYTES),
        ),
        streams.write_file(
            connection, _SCRIPT_PATH, spec.script.encode("utf-8"), mode=_SCRIPT_MODE
        ),
    )


async def _begin(connection: ShimConnection, spec: RunSpec) -> None:
    environment = {**_ENVIRONMENT, **spec.environment}
    fields = [("arg", "/bin/sh"), ("arg", _SCRIPT_PATH), ("cwd", "/root")]
    fields += [("env", f"{name}={value}") for name, value in environment.items()]
    await connection.open_durable(SCRIPT_STREAM, pack_fields("exec", fields), spec.timeout_s)


def _has_begun(handle: Handle) -> bool:
    return read_stream(handle.run_directory, SCRIPT_STREAM) is not None


async def _stop_unless_begun(engine: Engine, handle: Handle) -> None:
    if not _has_begun(handle):
        await finish(engine.stop(handle))
