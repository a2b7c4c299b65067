"""A service under test: a data directory, and the application that works on it at the moment."""

import asyncio
import dataclasses
import os
from pathlib import Path

from magsd.aio import SystemClock
from magsd.core.application import Application
from magsd.core.node import Node
from magsd.core.settings import CoreSettings
from magsd.db.database import Database
from magsd.engine.record import VmRecord
from magsd.guest.state import read_stream
from magsd.model.lifecycle import Status
from magsd.model.records import JobSpec, Principal
from magsd.storage.images import ImageStore
from magsd.storage.objects import ObjectStoreSettings, open_store
from tests.integration.core.process_engine import ProcessEngine

DEADLINE_S = 30
RESTARTED = "the service was restarted; the job went on meanwhile"


class Service:
    """A data directory, and the application that works on it at the moment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engine = ProcessEngine(directory)
        self.database_url = f"sqlite:///{directory}/mags.db"
        self.object_store = ObjectStoreSettings((directory / "objects").as_uri())
        self.settings = CoreSettings(directory, "process", stop_wait_s=DEADLINE_S)
        self.clock = SystemClock()
        self.database: Database | None = None
        self.app: Application | None = None
        self.principal: Principal | None = None

    async def start(self) -> None:
        self.database = await Database.open(self.database_url, self.settings.node)
        self.objects = open_store(self.object_store)
        self.node = Node(
            database=self.database,
            engines={"process": self.engine},
            images=ImageStore(self.directory),
            objects=self.objects,
            settings=self.settings,
            clock=self.clock,
        )
        self.app = await Application.open(self.node)
        await self.sign_in()

    async def sign_in(self) -> None:
        await self.app.access.first_token("a-secret-of-the-tests")
        self.principal = await self.app.access.authenticate("a-secret-of-the-tests")

    async def stop(self) -> None:
        await self.app.aclose()
        await self.objects.aclose()
        await self.database.aclose()

    async def restart(self, **settings) -> None:
        await self.stop()
        self.settings = dataclasses.replace(self.settings, **settings)
        await self.start()

    async def at_rest(self) -> None:
        """Wait until no job has a VM; those that wait for one stay."""
        async with asyncio.timeout(DEADLINE_S):
            while self.app.pool_status().busy_vms:
                await asyncio.sleep(0.01)

    async def waiting(self, count: int) -> set[str]:
        """Return the names of the VMs in the pool once so many wait."""
        async with asyncio.timeout(DEADLINE_S):
            while self.app.pool_status().idle_vms != count:
                await asyncio.sleep(0.01)
        pool = self.node.pool
        return {vm.handle.vm for stock in pool._stocks.values() for vm in stock.ready}

    async def change(self, statement: str, *values) -> None:
        """Change rows behind the application's back."""
        await self.database.write(lambda tx: tx.exec_driver_sql(statement, values) and None)

    async def submit(self, script: str, **fields):
        return await self.app.submit(self.principal, JobSpec(script, **fields))

    async def until(self, request_id, is_reached=lambda status: status.is_final):
        async with asyncio.timeout(DEADLINE_S):
            status = await self.app.status(self.principal, request_id)
            while not is_reached(status):
                assert not status.is_final, status
                status = await self.app.status(
                    self.principal, request_id, wait_s=5, after_generation=status.generation
                )
        return status

    async def run(self, script: str, **fields):
        return await self.until((await self.submit(script, **fields)).request_id)

    async def running(self, script: str, **fields):
        status = await self.submit(script, **fields)
        return await self.until(status.request_id, lambda now: now.status is Status.RUNNING)

    async def printed(self, request_id, text: str) -> None:
        """Wait until a line of the log is `text`."""
        async with asyncio.timeout(DEADLINE_S):
            async for lines in self.app.follow_logs(self.principal, request_id):
                if any(line.message == text for line in lines):
                    return
        raise AssertionError(f"the job ended without printing {text!r}")

    async def log(self, request_id, **query) -> list[tuple[str, str]]:
        page = await self.app.logs(self.principal, request_id, **query)
        return [(line.source.value, line.message) for line in page.lines]

    async def followed(self, request_id, **query) -> list[tuple[str, str]]:
        async with asyncio.timeout(DEADLINE_S):
            return [
                (line.source.value, line.message)
                async for lines in self.app.follow_logs(self.principal, request_id, **query)
                for line in lines
            ]

    def wait_at(self, gate: str) -> str:
        """Return a command that waits until `open_gate`."""
        os.mkfifo(self.directory / gate)
        return f"read line < {self.directory / gate}"

    async def open_gate(self, gate: str) -> None:
        await asyncio.to_thread((self.directory / gate).write_text, "open\n")

    async def script_over(self, vm: str) -> None:
        """Wait until the shim has recorded the script's end."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                state = read_stream(self.directory / "run" / vm, 1)
                if state is not None and state.is_over:
                    return
                await asyncio.sleep(0.01)

    async def stop_after(self, statement: str) -> None:
        """Stop, after a change of rows that the application does not learn of."""
        await self.change(statement)
        await self.stop()

    def record(self, vm: str) -> VmRecord:
        return VmRecord.read(self.directory / "run" / vm)

    async def gone(self, vm: str) -> None:
        """Wait until a VM, or each that a pattern names, has been given back."""
        async with asyncio.timeout(DEADLINE_S):
            while list((self.directory / "run").glob(vm)):
                await asyncio.sleep(0.01)
