"""A clock and an object store that tests hold, and layers made of files."""

import asyncio
from datetime import UTC, datetime

from magsd.model.names import AccountId
from magsd.storage.objects import DirectoryStore

ACCOUNT = AccountId("acc_0123456789abcdef")
OTHER = AccountId("acc_fedcba9876543210")


class HeldClock:
    """Moves when it is told to."""

    def __init__(self):
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self):
        return self.time

    def monotonic(self):
        return self.time.timestamp()

    async def sleep(self, seconds):
        raise AssertionError(f"nothing here waits, and not for {seconds} s")


class CountingStore(DirectoryStore):
    """Counts what is asked of it, and holds puts, gets and deletions while told to."""

    def __init__(self, root):
        super().__init__(root)
        self.root = root
        self.gets = self.puts = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.is_asked = asyncio.Event()

    async def put(self, key, content):
        self.puts += 1
        await self._held()
        await super().put(key, content)

    async def put_all(self, objects):
        def counted():
            for each in objects:
                self.puts += 1
                yield each

        await self._held()
        await super().put_all(counted())

    async def get(self, key, into, *, limit_bytes):
        self.gets += 1
        await self._held()
        return await super().get(key, into, limit_bytes=limit_bytes)

    async def delete(self, key):
        async def held():
            await self._held()
            await super(CountingStore, self).delete(key)

        # What a store has been asked for it does, also when nobody waits for that any more.
        await asyncio.shield(asyncio.ensure_future(held()))

    async def _held(self):
        self.is_asked.set()
        await self.may_go_on.wait()

    def files(self, kind, account=ACCOUNT):
        return sorted((self.root / "layers" / account / kind).glob("*"))


async def packed(layers, upper, **files):
    """Write files into a folder; return the layer of it."""
    upper.mkdir(exist_ok=True)
    for name, content in files.items():
        (upper / name).write_bytes(content)
    layer = await layers.pack_directory(upper)
    assert layer is not None
    return layer
