"""How the VM of a run falls asleep, sleeps, and is woken; and goes on after it was lost.

Belongs to the run's actor. Asleep there is a disk and a row, and nothing that
runs. Awake again it is a VM of the same name and run directory with the next
epoch, on the same disk: its journal goes on, its script is never run again.
"""

import asyncio
import dataclasses
from pathlib import Path
from typing import Final

import structlog

from magsd.core import launch, outcome
from magsd.core.footprint import Footprint
from magsd.core.launch import SCRIPT_STREAM, STARTUP_STREAM
from magsd.core.node import Node
from magsd.core.run_ending import RunEnding
from magsd.core.run_row import FencedError, RunRow
from magsd.core.vm_changes import Kept, VmChanges
from magsd.core.vm_hold import VmHold
from magsd.core.vm_link import ScriptEnd, VmLink, has_stream, known_end
from magsd.core.vm_start import Unless
from magsd.core.vm_wake import VmWake
from magsd.db import jobs, runs
from magsd.engine.base import EndReason, VmEnd
from magsd.engine.record import VmRecord
from magsd.guest.shim import ShimConnection
from magsd.model.errors import CapacityError, JobCode, LaunchError, MagsError
from magsd.model.layers import Layer, Manifest
from magsd.model.lifecycle import OVER, Goal, RunState
from magsd.model.records import Synced

LOCAL: Final = "local"
"""`restored_from` of a run whose VM was lost and which goes on from its own disk."""
_KEEP_AGAIN_S: Final = 300.0
"""So long after a sleeping VM's changes could not be kept in its workspace that is tried again."""
_LIVED_S: Final = 60.0
"""A VM that runs out of memory sooner after its start would do so again and again."""
_PAUSE_S: Final = 1.0
"""After somebody else changed the goal at the same moment, who is about to say so."""
_log = structlog.get_logger()


class Sleeping:
    """The sleep of one run."""

    def __init__(
        self,
        node: Node,
        row: RunRow,
        hold: VmHold,
        changes: VmChanges,
        footprint: Footprint,
        ending: RunEnding,
        unless: Unless,
    ) -> None:
        self._node = node
        self._row = row
        self._hold = hold
        self._changes = changes
        self._footprint = footprint
        self._ending = ending
        self._unless = unless
        self._wake = VmWake(node, row, changes, footprint)
        self._woken: asyncio.Future[MagsError | None] | None = None
        self._follows_startup = False
        self._keep_at = 0.0
        self._began_at = node.clock.monotonic()
        self._log = _log.bind(request_id=row.request_id)

    # --- those who wait for the VM -----------------------------------------------

    def woken(self) -> "asyncio.Future[MagsError | None]":
        """Return what tells all who wait how the next attempt to have the VM awake has ended."""
        if self._woken is None:
            self._woken = asyncio.get_running_loop().create_future()
        return self._woken

    def tell(self, error: MagsError | None) -> None:
        """Tell those who wait that the VM is awake, or why it is not."""
        waiting, self._woken = self._woken, None
        if waiting is not None and not waiting.done():
            waiting.set_result(error)

    def be_awake(self) -> None:
        """Let everybody use the VM, which is awake and to stay so."""
        self._node.uses.open(self._row.request_id)
        self.tell(None)

    # --- falling asleep ----------------------------------------------------------

    async def fall_asleep(self) -> None:
        """End the VM and keep its disk; do the rest where an earlier daemon was at it.

        With a workspace its changes become a version meanwhile, unless somebody
        wants the VM: its disk is all that it needs.
        """
        if self._row.run.state is RunState.RUNNING and not await self._begin():
            return
        await self._end_vm()
        self._footprint.rest()
        await self._publish_asleep(await self._keep())

    async def _begin(self) -> bool:
        """Write down that it is falling asleep. False: it does not, or not yet."""
        row, uses = self._row, self._node.uses
        may_sleep = row.job.persistent and not row.job.no_sleep
        if not may_sleep or not uses.close(row.request_id):
            self.be_awake()
            await self._ask(Goal.RUNNING)
            return False
        if not self._ending.is_script_over and (ended := self._hold.attached.known_end()):
            await self._ending.by_script(ended)
            return False
        await row.save(dataclasses.replace(row.run, state=RunState.SUSPENDING))
        return True

    async def _end_vm(self) -> None:
        handle, engine, link = self._hold.handle, self._hold.engine, self._hold.link
        await self._write_down_layers()
        # Found again, it can be saved, and writes out what it has in memory before it is ended.
        lives = link is not None or await engine.adopt(handle.run_directory) is not None
        if lives and self._row.run.slept_at is None:
            await self._save_memory()
        if link is not None:
            if not self._has_memory:
                running = [each for each in (SCRIPT_STREAM, STARTUP_STREAM) if self._runs(each)]
                await asyncio.gather(*(link.terminate(stream) for stream in running))
            await self._hold.detach()
        await engine.stop(handle, keep_changes=True)
        run = self._row.run
        if run.slept_at is None:
            is_cut = not self._ending.is_script_over and not self._has_memory
            await self._append(outcome.of_sleep(is_cut=is_cut))
            now = self._node.clock.now()
            if is_cut:
                code = outcome.EXIT_STOPPED
                run = dataclasses.replace(run, exit_code=code, script_ended_at=now)
            await self._row.save(dataclasses.replace(run, slept_at=now))

    @property
    def _has_memory(self) -> bool:
        return self._node.snapshots.exists(self._hold.handle.vm)

    async def _save_memory(self) -> None:
        """Suspend the VM where that can be, and nothing is to be run at its wake."""
        node, hold, request_id = self._node, self._hold, self._row.request_id
        if not hold.engine.capabilities.suspend or self._has_memory:
            return
        read = node.database.read
        if await read(lambda tx: jobs.startup_command(tx, request_id)):
            return
        memory_mb = (await read(lambda tx: jobs.spec(tx, request_id))).memory_mb
        try:
            if node.snapshots.has_room(memory_mb):
                await hold.engine.suspend(hold.handle, node.snapshots.place(hold.handle.vm))
        except (LaunchError, LookupError, OSError) as error:
            detail = getattr(error, "detail", "")
            self._log.warning("memory_not_saved", why=str(error), detail=detail)

    def _runs(self, stream: int) -> bool:
        handle = self._hold.handle
        return has_stream(handle, stream) and known_end(handle, stream) is None

    async def _write_down_layers(self) -> None:
        """See to it that the disk's layers are known: its image may be built anew meanwhile."""
        run, node = self._row.run, self._node
        if await node.database.read(lambda tx: runs.manifest(tx, run.run_id)) is not None:
            return
        record = VmRecord.read(self._hold.handle.run_directory)
        if record is None:
            spec = await node.database.read(lambda tx: jobs.spec(tx, run.request_id))
            image = launch.image_of(spec, node.images, node.settings)
            name, paths = image.name, image.layers
        else:
            name = record.image
            paths = tuple(node.layers.path(Path(layer).stem) for layer in record.layers)
        layers = tuple(Layer(path.stem, path.stat().st_size) for path in paths)
        async with node.layer_names:
            await self._row.begin_from(Manifest(name, layers), run.base_version)

    async def _keep(self) -> Kept | None:
        """Make a version of what the disk holds. None: there is none to be made, or not now."""
        if not self._row.job.is_kept:
            return None
        try:
            return await self._unless(self._changes.keep_asleep(self._hold.handle))
        except FencedError:
            raise
        except (MagsError, LookupError) as error:
            why = error.message if isinstance(error, MagsError) else str(error)
            self._log.warning("changes_not_kept", why=why, detail=getattr(error, "detail", ""))
        except Exception:  # noqa: BLE001 - it sleeps all the same, and it is tried again
            self._log.exception("changes_not_kept")
            why = "the service could not, see its log"
        await self._append(outcome.of_changes_not_kept(why))
        self._keep_at = self._node.clock.monotonic() + _KEEP_AGAIN_S
        return None

    async def _publish_asleep(self, kept: Kept | None) -> None:
        if kept is not None and kept.is_aside:
            await self._append(outcome.of_version_aside(kept.version))
        is_synced = False if self._row.job.is_kept else None
        asleep = dataclasses.replace(
            self._row.run,
            state=RunState.SLEEPING,
            slept_version=None if kept is None else kept.version,
            is_synced=is_synced if kept is None else kept.is_synced,
        )
        await self._row.publish(asleep)

    # --- asleep ------------------------------------------------------------------

    async def rest(self) -> None:
        """Wait for another goal; meanwhile keep in the workspace what could not be kept before."""
        self._footprint.occupy(asleep=True)
        if not self._row.job.is_kept or self._row.run.slept_version is not None:
            await self._unless(_for_ever())
            return
        wait_s = self._keep_at - self._node.clock.monotonic()
        if wait_s > 0:
            await self._unless(self._node.clock.sleep(wait_s))
        elif (kept := await self._keep()) is not None:
            await self._publish_asleep(kept)

    async def synced(self) -> Synced:
        """Return the version that a sleeping VM's disk has become, when it is stored.

        Raises `CapacityError` when there is none yet, `ConflictError` when it is not the newest.
        """
        if (number := self._row.run.slept_version) is None:
            raise CapacityError("what the job changed is not kept yet: try again in a moment")
        return await self._changes.asleep(number)

    # --- waking ------------------------------------------------------------------

    async def wake(self) -> None:
        """Have a VM again, or say to all who wait why not, and sleep on."""
        self._footprint.occupy(asleep=True)
        try:
            connection = await self._unless(self._in_time())
        except FencedError:
            raise
        except MagsError as error:
            if isinstance(error, LaunchError) and error.job_code is JobCode.STATE_LOST:
                await self._ending.by_lost_state(error)
            else:
                await self._sleep_on(error)
        except Exception:  # noqa: BLE001 - told to who waits, and the job sleeps on
            self._log.exception("wake_failed")
            text = "the service could not do it: its operator finds the reason in the log"
            await self._sleep_on(MagsError(text))
        else:
            if connection is None:  # Another goal was set.
                await self.fall_back()
            else:
                await self._get_up(connection)

    async def _in_time(self) -> ShimConnection:
        wait_s = self._node.settings.wake_wait_s
        try:
            async with asyncio.timeout(wait_s):
                return await self._wake.run()
        except TimeoutError:
            if not self._footprint.has_room:
                text = "this machine has no room for it now: try again when other jobs have ended"
            else:
                text = f"it took longer than {wait_s:g} s: try again when the host is less busy"
            raise CapacityError(text) from None

    async def _sleep_on(self, error: MagsError) -> None:
        self._log.warning("not_woken", error=error.message, detail=error.detail)
        await self.fall_back()
        await self._ask(Goal.ASLEEP)
        text = f"the job sleeps and could not be woken: {error.message}"
        self.tell(CapacityError(text, error.detail))

    async def fall_back(self) -> None:
        """Give up a VM that was about to be woken, here or by an earlier daemon: it sleeps on."""
        if self._row.run.state is RunState.WAKING:
            handle, engine = self._hold.handle, self._hold.engine
            await engine.adopt(handle.run_directory)
            await engine.stop(handle, keep_changes=True)
            await self._node.snapshots.drop(handle.vm)  # It may have written since.
            await self._row.save(dataclasses.replace(self._row.run, state=RunState.SLEEPING))
        self._footprint.rest()

    async def _get_up(self, connection: ShimConnection) -> None:
        hold = self._hold
        hold.attach(VmLink(hold.engine, hold.handle, connection, self._node.clock))
        try:
            await self._row.publish_awake(
                dataclasses.replace(self._row.run, state=RunState.RUNNING)
            )
        except BaseException:
            await hold.detach()
            raise
        self.found_awake()
        self._began_at = self._node.clock.monotonic()
        self.be_awake()

    async def _ask(self, goal: Goal) -> None:
        if not await self._row.ask(goal):
            await self._unless(self._node.clock.sleep(_PAUSE_S))

    # --- awake -------------------------------------------------------------------

    @property
    def follows_startup(self) -> bool:
        """Whether the end of a startup command is waited for."""
        return self._follows_startup

    def found_awake(self) -> None:
        """Take note of what runs in a VM that was woken, or that an earlier daemon had."""
        self._follows_startup = has_stream(self._hold.handle, STARTUP_STREAM)

    async def follow_startup(self) -> None:
        """Wait for the end of the startup command, and tell the log if it failed."""
        link = self._hold.attached
        ended = await self._unless(link.script_ended(STARTUP_STREAM))
        if ended is None:
            return
        self._follows_startup = False
        if ended.wait_status:
            line = outcome.of_startup(ended.wait_status)
            at_ns = 0 if ended.at is None else int((ended.at.timestamp() - 0.001) * 1e9)
            told = self._node.run_log.has_told_since
            if not await asyncio.to_thread(told, self._row.run, line, at_ns):
                await self._hold.note(line)

    # --- lost --------------------------------------------------------------------

    def goes_on_after(self, vm_end: VmEnd) -> bool:
        """Say whether a run goes on, from its disk, whose VM was lost like this."""
        job, run = self._row.job, self._row.run
        if not job.persistent or run.started_at is None or job.goal in OVER:
            return False
        lived_s = self._node.clock.monotonic() - self._began_at
        is_out = vm_end.reason is EndReason.OUT_OF_MEMORY and lived_s >= _LIVED_S
        return is_out or vm_end.reason is EndReason.HOST_RESTARTED

    async def go_on(self, vm_end: VmEnd, ended: ScriptEnd | None) -> None:
        """Have a VM that was lost sleep, to be woken from its disk: at once, unless that was with
        its host and it need not be awake by itself."""
        self._log.warning("vm_lost", reason=vm_end.reason, detail=vm_end.detail)
        await self._hold.detach()
        await self._write_down_layers()
        await self._hold.engine.stop(self._hold.handle, keep_changes=True)
        lost = outcome.of_lost_vm(vm_end)
        await self._append(outcome.of_going_on(lost))
        now, run = self._node.clock.now(), self._row.run
        if ended is not None and not self._ending.is_script_over:
            run = await self._ending.with_script_end(ended)
        elif not self._ending.is_script_over:
            run = dataclasses.replace(run, exit_code=lost.exit_code, script_ended_at=now)
        self._footprint.rest()
        state = RunState.SLEEPING
        await self._row.publish(
            dataclasses.replace(run, state=state, slept_at=now, restored_from=LOCAL)
        )
        if vm_end.reason is EndReason.HOST_RESTARTED and not self._row.job.no_sleep:
            await self._ask(Goal.ASLEEP)

    async def _append(self, line: str) -> None:
        """Append a line to the log of a VM that is no more, unless it is the last."""
        run_log, run = self._node.run_log, self._row.run
        if not await asyncio.to_thread(run_log.ends_with, run, line):
            run_log.append(run, line)


async def _for_ever() -> None:
    await asyncio.Event().wait()
