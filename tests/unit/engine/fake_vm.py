"""A pretended VM without its host, and connections to it without sockets."""

import asyncio

from magsd.engine.fake.client import Client
from magsd.engine.fake.files import DATA
from magsd.engine.fake.machine import Nature
from magsd.engine.fake.shim import Shim, Spec
from magsd.guest.journal import JournalReader
from magsd.guest.state import EndCode, read_state
from magsd.guest.wire import Frame, Kind, pack_fields, parse_fields
from tests.unit.engine.fake_world import HeldWorld

T1 = 0x10000


class Daemon:
    """One connection, its frames as they come."""

    def __init__(self, vm) -> None:
        self.frames: list[Frame] = []
        self.is_full = False
        self.is_finished = False
        self.client = Client(vm.shim, self)
        assert vm.shim.connected(self.client)

    def send(self, frame):
        self.frames.append(frame)

    async def writable(self):
        while self.is_full:
            await asyncio.sleep(0)

    def finish(self):
        self.is_finished = True

    def give(self, kind, stream=0, channel=0, value=0, payload=b""):
        self.client.take(Frame(kind, stream, channel, value, payload))

    def ask(self, verb, **fields) -> str:
        """Return the error of a request, or nothing."""
        self.give(Kind.REQUEST, value=7, payload=pack_fields(verb, fields.items()))
        answers = [f for f in self.frames if f.kind is Kind.REPLY]
        self.frames = [f for f in self.frames if f.kind is not Kind.REPLY]
        return parse_fields(answers[-1].payload).get("error") if answers else "no answer"

    def run(self, script, stream=1, deadline_ms=0):
        words = [("arg", "sh"), ("arg", "-c"), ("arg", script)]
        self.give(
            Kind.OPEN, stream, 1 if stream < T1 else 0, deadline_ms, pack_fields("exec", words)
        )

    def taken(self, kind):
        found = [frame for frame in self.frames if frame.kind is kind]
        self.frames = [frame for frame in self.frames if frame.kind is not kind]
        return found


class Vm:
    def __init__(self, directory, **changes) -> None:
        self.world = HeldWorld()
        self.directory = directory
        self.ended: list = []
        spec = {"vm": "00c0ffee", "epoch": 3, "nature": Nature("h", 1, 512),
                "log_rate_bytes": 0, "log_burst_bytes": 1, **changes}  # fmt: skip
        self.shim = Shim(self.world, directory, Spec(**spec), self.ended.append)

    def journal(self, channel=1):
        reader, position, found = JournalReader(self.directory), 0, b""
        while True:
            records, position = reader.read(position)
            if not records:
                return found
            wanted = [r.payload for r in records if (r.channel, r.kind) == (channel, DATA)]
            found += b"".join(wanted)

    @property
    def end(self):
        return read_state(self.directory).end

    async def aclose(self):
        self.shim.end(EndCode.KILLED, "")
        await self.world.tasks.aclose()
        assert not self.world.errors
