"""The Engine contract: a VM is suspended, and goes on where it was."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from magsd.engine.base import EndReason, Engine, Handle, Plan
from magsd.model.names import new_vm_id
from tests.conformance.host import Host
from tests.conformance.vm import begin, connected, journaled, printed, script, within

pytestmark = pytest.mark.parametrize("host", ["qemu"], indirect=True)

COUNTING = "i=0; while [ $i -lt {most} ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit 7"


def again(plan: Plan) -> Plan:
    """The plan of a VM that goes on from the one of `plan`."""
    return replace(plan, vm=new_vm_id(), epoch=plan.epoch + 1)


async def journal_of(*handles: Handle) -> bytes:
    """What the script of VMs that followed one another has printed, each byte once."""
    return b"".join([await asyncio.to_thread(journaled_after, handle) for handle in handles])


def journaled_after(handle: Handle) -> bytes:
    return journaled(handle)


async def test_it_goes_on_where_it_was(host: Host, engine: Engine, tmp_path: Path) -> None:
    plan = host.plan()
    first = await engine.launch(plan)
    await printed(first, "echo kept > /root/file; (sleep 1000 & echo $! > /run/pid)")
    pid = (await printed(first, "cat /run/pid")).strip()
    machine_id = await printed(first, "cat /etc/machine-id; hostname")
    snapshot = tmp_path / "snapshot"
    await engine.suspend(first, snapshot)
    assert (await engine.wait(first)).reason is EndReason.KILLED
    second = await engine.restore(snapshot, again(plan))
    assert await printed(second, "cat /root/file") == "kept\n"
    assert await printed(second, f"tr '\\0' ' ' < /proc/{pid}/cmdline") == "sleep 1000 "
    assert await printed(second, "cat /etc/machine-id; hostname") == machine_id
    await engine.stop(first)
    assert await printed(second, "echo more >> /root/file; sync; cat /root/file") == "kept\nmore\n"
    await engine.stop(second)
