"""A world whose time goes on only when a test says so, and a VM's inside in it."""

import asyncio
import heapq
import itertools

from magsd.aio import SystemClock, Tasks
from magsd.engine.fake.commands import interpret
from magsd.engine.fake.machine import Machine, Nature
from magsd.engine.fake.program import Program
from magsd.engine.fake.world import World
from magsd.guest.wire import Channel


class _Timer:
    def __init__(self, act):
        self.act = act

    def cancel(self):
        self.act = None


class HeldWorld(World):
    """Timers come when `pass_time` reaches them."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.tasks = Tasks(lambda name, error: self.errors.append(f"{name}: {error!r}"))
        super().__init__(SystemClock(), self.tasks)
        self._now = 1000.0
        self._timers: list = []
        self._order = itertools.count()

    def monotonic(self):
        return self._now

    def call_later(self, seconds, act):
        timer = _Timer(act)
        heapq.heappush(self._timers, (self._now + seconds, next(self._order), timer))
        return timer

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and all that comes of it."""
        end = self._now + seconds
        while True:
            await settled()
            if not self._timers or self._timers[0][0] > end:
                break
            self._now, _, timer = heapq.heappop(self._timers)
            if timer.act is not None:
                timer.act()
        self._now = end
        await settled()


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


class Printed:
    """Output of a program."""

    def __init__(self) -> None:
        self.data = {Channel.OUT: bytearray(), Channel.ERR: bytearray()}

    async def write(self, channel, data):
        self.data[channel] += data

    @property
    def out(self) -> str:
        return self.data[Channel.OUT].decode(errors="surrogateescape")

    @property
    def err(self) -> str:
        return self.data[Channel.ERR].decode(errors="surrogateescape")


class Inside:
    """The inside of one VM. `run` a script to its end, or `begin` one and let time pass."""

    def __init__(self) -> None:
        self.world = HeldWorld()
        self.ends: list = []
        nature = Nature("pretender", 2.5, 512)
        self.machine = Machine(self.world, nature, lambda *end: self.ends.append(end))
        self.statuses: list[int] = []

    def begin(self, script: str, *, environment=None, arguments=(), stdin=None):
        printed = Printed()
        words = ["/bin/sh", "-c", script, *arguments]
        program = Program(
            self.machine, words, environment or {}, "/root", printed, stdin, self.statuses.append
        )
        program.begin(interpret)
        return program, printed

    async def run(self, script: str, **how):
        """Return the exit code, and what was printed."""
        count = len(self.statuses)
        _, printed = self.begin(script, **how)
        async with asyncio.timeout(10):
            while len(self.statuses) == count:
                await asyncio.sleep(0)
        status = self.statuses[-1]
        return status >> 8 if status > 255 or status == 0 else -status, printed.out, printed.err

    async def aclose(self) -> None:
        self.machine.stop()
        await self.world.tasks.aclose()
        assert not self.world.errors
