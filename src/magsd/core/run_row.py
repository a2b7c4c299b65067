"""The row of one run, as the actor that owns it writes it.

Every write is guarded by run and epoch: one that finds no row means that
somebody else has the run now.
"""

import asyncio
import dataclasses

from sqlalchemy import Connection

from magsd.core.goals import with_goal
from magsd.core.node import Node
from magsd.db import jobs, naps, runs
from magsd.model.errors import ConflictError
from magsd.model.layers import Manifest
from magsd.model.lifecycle import Goal
from magsd.model.names import RequestId
from magsd.model.records import Job, Run


class FencedError(Exception):
    """Somebody else has the run now."""


class RunRow:
    """A run and its job as they were committed last, and how that changes."""

    def __init__(self, node: Node, job: Job, run: Run) -> None:
        self._node = node
        self.job = job
        self.run = run
        self._writing = asyncio.Lock()
        """The actor is not the only one who counts changes: settings come from callers."""

    @property
    def request_id(self) -> RequestId:
        """The job's id."""
        return self.job.request_id

    def want(self, goal: Goal, goal_version: int) -> bool:
        """Take note of a goal that has been committed; say whether it is news."""
        if goal_version <= self.job.goal_version:
            return False
        self.job = dataclasses.replace(self.job, goal=goal, goal_version=goal_version)
        return True

    async def begin_from(self, manifest: Manifest, version: int | None) -> None:
        """Commit what the run's root filesystem is made of. Raises `FencedError`.

        `version` is that of its own workspace, if it has one.
        """
        run = dataclasses.replace(self.run, base_version=version)

        def write(tx: Connection) -> bool:
            if not runs.save(tx, run, epoch=run.epoch, generation=self.job.generation):
                return False
            runs.set_manifest(tx, run.run_id, run.epoch, manifest)
            return True

        async with self._writing:
            if not await self._node.database.write(write):
                raise FencedError
            self.run = run

    async def save(self, run: Run) -> None:
        """Commit a change that nobody is told of. Raises `FencedError`."""
        async with self._writing:
            await self._write(run, self.job.generation)

    async def publish(self, run: Run) -> None:
        """Commit a change and tell everybody. Raises `FencedError`."""
        async with self._writing:
            generation = self.job.generation + 1
            await self._write(run, generation)
            self.job = dataclasses.replace(self.job, generation=generation)
            self._node.publish(self.job, run)

    async def publish_awake(self, run: Run) -> None:
        """Commit that a VM that slept is awake, and for how long it slept; tell everybody.

        Raises `FencedError`.
        """
        slept_at, woke_at, job = self.run.slept_at, self._node.clock.now(), self.job
        awake = dataclasses.replace(run, slept_at=None, slept_version=None, is_synced=None)

        def write(tx: Connection, generation: int) -> bool:
            if not runs.save(tx, awake, epoch=self.run.epoch, generation=generation):
                return False
            if slept_at is not None:
                naps.add(tx, run.run_id, job.account_id, slept_at, woke_at)
            return True

        async with self._writing:
            generation = self.job.generation + 1
            if not await self._node.database.write(lambda tx: write(tx, generation)):
                raise FencedError
            self.run = awake
            self.job = dataclasses.replace(self.job, generation=generation)
            self._node.publish(self.job, awake)

    async def ask(self, goal: Goal) -> bool:
        """Write down another goal for the actor's own sake; False when somebody else wants another."""
        job, run = self.job, self.run
        try:
            asked = await self._node.database.write(lambda tx: with_goal(tx, job, run, goal))
        except ConflictError:
            return False
        self.want(asked.goal, asked.goal_version)
        return True

    async def set_no_sleep(self, no_sleep: bool) -> None:
        """Commit a setting of the job and tell everybody. Raises `FencedError`.

        Not to be cancelled: what is committed must be published.
        """
        async with self._writing:
            run, request_id, generation = self.run, self.request_id, self.job.generation + 1

            def write(tx: Connection) -> bool:
                if not runs.save(tx, run, epoch=run.epoch, generation=generation):
                    return False
                jobs.set_no_sleep(tx, request_id, no_sleep)
                return True

            if not await self._node.database.write(write):
                raise FencedError
            self.job = dataclasses.replace(self.job, no_sleep=no_sleep, generation=generation)
            self._node.publish(self.job, run)

    async def _write(self, run: Run, generation: int) -> None:
        epoch = self.run.epoch
        is_written = await self._node.database.write(
            lambda tx: runs.save(tx, run, epoch=epoch, generation=generation)
        )
        if not is_written:
            raise FencedError
        self.run = run
