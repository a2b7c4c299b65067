"""What tests do with VMs that are suspended and go on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from magsd.engine.base import Engine, Handle, Plan
from magsd.guest.journal import JournalReader
from magsd.model.names import new_vm_id

COUNTING = "i=0; while [ $i -lt {most} ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit 7"


def again(plan: Plan) -> Plan:
    """The plan of a VM that goes on from that of `plan`."""
    return replace(plan, vm=new_vm_id(), epoch=plan.epoch + 1)


@asynccontextmanager
async def launched(engine: Engine, plan: Plan) -> AsyncIterator[Handle]:
    handle = await engine.launch(plan)
    try:
        yield handle
    finally:
        await engine.stop(handle)


@asynccontextmanager
async def gone_on(engine: Engine, snapshot: Path, plan: Plan) -> AsyncIterator[Handle]:
    handle = await engine.restore(snapshot, plan)
    try:
        yield handle
    finally:
        await engine.stop(handle)


def all_printed(*handles: Handle) -> bytes:
    """What stream 1 printed in VMs that followed one another: each byte once, none missing."""
    content = bytearray()
    for handle in handles:
        reader, position = JournalReader(handle.run_directory), 0
        while records := reader.read(position)[0]:
            position = records[-1].end_position
            for record in records:
                if (record.stream, record.channel, record.kind) == (1, 1, 1):
                    assert record.offset == len(content)
                    content += record.payload
    return bytes(content)


def counted(most: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, most + 1))
