"""What scripts find in a guest, whatever root filesystem it has and whatever runs it."""

import asyncio
import hashlib

import pytest

from magsd.core import launch
from magsd.engine.base import Engine, Handle
from magsd.guest import streams
from magsd.guest.shim import ShimConnection
from magsd.model.quota import Limits, completed
from magsd.model.records import JobSpec
from tests.conformance.roots import WITH_ROOTS
from tests.conformance.shim_host import ShimHost
from tests.conformance.vm import ENVIRONMENT, connected, journaled, printed, shell, within
from tests.mirror import mirror

pytestmark = pytest.mark.parametrize("host", WITH_ROOTS, indirect=True)

OUTPUT_BYTES = 10_000_000
PUSHED = bytes(range(256)) * 4096
SECRETS = """\
od -An -N16 -tx1 /dev/urandom
cat /etc/machine-id /proc/sys/kernel/random/uuid 2>/dev/null
:
"""
TRACES = (
    "ls -A /root /tmp /run/mags; n=0; for p in /proc/[0-9]*; "
    'do x=; read -r x < $p/cmdline; [ -z "$x" ] || n=$((n+1)); done; echo $n'
)
"""A kernel's own threads, which come and go, have no command line."""


async def begun(engine: Engine, host: ShimHost, script: str, **environment: str) -> Handle:
    """Launch a VM and run a job's script in it to its end, which must be a good one."""
    plan = host.plan()
    spec = completed(JobSpec(script, environment=environment), Limits())
    connection = await launch.start(engine, plan, spec, host.clock)
    try:
        state = await within(30, connection.exited(launch.SCRIPT_STREAM))
    finally:
        await connection.aclose()
    handle = await engine.adopt(host.data / "run" / plan.vm)
    assert handle is not None
    assert state.wait_status == 0, journaled(handle, channel=2)
    return handle


async def waiting(engine: Engine, host: ShimHost) -> tuple[Handle, ShimConnection]:
    """Return a VM as the pool makes it: it has run the warm-up and is frozen."""
    handle = await engine.launch(host.plan(waits=True))
    connection = await ShimConnection.open(handle.run_directory)
    await launch.hold(connection, "mags-waiting", host.clock)
    await launch.warm(connection, engine.capabilities)
    return handle, connection


async def test_a_job_and_what_is_found_beside_it(host: ShimHost, engine: Engine) -> None:
    handle = await begun(engine, host, "pwd; id -un; echo $GREETING", GREETING="well met")
    assert journaled(handle) == b"/root\nroot\nwell met\n"
    async with connected(handle) as connection:
        argv = ["sh", "-c", f"yes 0123456 | head -c {OUTPUT_BYTES}; echo told >&2; exit 3"]
        ran = await streams.run(
            connection, argv, environment=ENVIRONMENT, output_max=2 * OUTPUT_BYTES
        )
        assert (ran.wait_status, ran.stderr) == (3 << 8, b"told\n")
        assert ran.stdout == b"0123456\n" * (OUTPUT_BYTES // 8)
        await streams.write_file(connection, "/root/in/pushed", PUSHED, mode=0o640)
    digest = hashlib.sha256(PUSHED).hexdigest()
    told = await printed(handle, "cd in; stat -c '%a %U %s' pushed; sha256sum pushed")
    assert told == f"640 root {len(PUSHED)}\n{digest}  pushed\n"
    as_nobody = "su -s /bin/sh nobody -c 'id -u; touch /tmp/mine; touch /root/not' 2>/dev/null"
    looked = "stat -c %U /tmp/mine; [ ! -e /root/not ]"
    assert await printed(handle, f"{as_nobody}; {looked}") == "65534\nnobody\n"
    assert await printed(handle, host.root.packages)
    # A root without the place for one of the host's files does not get it.
    found = await shell(handle, "cat /etc/pip.conf")
    assert (found.wait_status == 0) is host.root.has_pip_settings
    devices = "for d in null zero full random urandom tty ptmx shm pts fd; do [ -e /dev/$d ]"
    assert await printed(handle, f"{devices} || echo $d; done; echo x | cat /dev/stdin") == "x\n"
    await engine.stop(handle)


@pytest.mark.network
async def test_the_outside_is_found_by_name(host: ShimHost, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    nameserver = await printed(handle, "cat /etc/resolv.conf")
    assert nameserver == f"nameserver {host.network.dns_address}\n"
    outside, fetch = mirror(), host.root.fetch
    assert outside.host in (await printed(handle, f"getent hosts {outside.host}")).split()
    assert (await shell(handle, "getent hosts no-such-host.invalid")).wait_status != 0
    await printed(handle, f"{fetch} {outside.file}")
    assert (await shell(handle, f"{fetch} {outside.missing}")).wait_status != 0
    await engine.stop(handle)


async def test_those_that_wait_are_like_new_and_unlike_each_other(
    host: ShimHost, engine: Engine
) -> None:
    script = f"({SECRETS}) >&2\n{TRACES}"
    plain = await begun(engine, host, script)
    handles = [plain]
    spec = completed(JobSpec(script), Limits())
    for handle, connection in await asyncio.gather(*(waiting(engine, host) for _ in range(2))):
        await launch.begin(engine, handle, connection, spec, host.clock)
        state = await within(30, connection.exited(launch.SCRIPT_STREAM))
        await connection.aclose()
        assert state.wait_status == 0
        assert journaled(handle) == journaled(plain) != b""
        handles.append(handle)
    secrets = [line for each in handles for line in journaled(each, channel=2).splitlines()]
    # gVisor has no /proc/sys/kernel/random.
    assert len(secrets) == len(set(secrets)) == 3 * (1 + host.has_machine_id + host.is_linux)
    for handle in handles:
        await engine.stop(handle)
