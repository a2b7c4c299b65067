"""Templates: machines that were booted once and saved, from which VMs go on.

Owns which there are, how one is made, and when one is made anew: its key
names everything that the saved state depends on. At most a few lie in memory;
their files outlive the daemon.
"""

import asyncio
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from magsd.aio import Tasks, finish
from magsd.engine import qemu_facts, run_directory, template_files
from magsd.engine import qemu_spec as spec
from magsd.engine.base import Plan
from magsd.engine.qemu_bare import LAYERS_MAX, BareTemplateLaunch, is_bare
from magsd.engine.qemu_boot import CloneError, HungError, booted, undone
from magsd.engine.qemu_launch import Parts, TemplateLaunch
from magsd.engine.qemu_monitor import Monitor
from magsd.engine.template_files import Template
from magsd.engine.vm_host import VmHost
from magsd.engine.vm_launch import MACHINE, Launched
from magsd.guest import streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import LaunchError, MagsError
from magsd.model.names import new_vm_id

_log: Final = structlog.get_logger()

_FORM: Final = 3
"""Raise it when what the agent does before a template is saved changes."""
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_WARM_UP: Final = """\
ls / | cat > /dev/null
command -v python3 > /dev/null && python3 -c pass
sync
"""
_IN_MEMORY_MAX: Final = 6
_UNUSED_S: Final = 7 * 86_400.0
_AGAIN_S: Final = 60.0
"""So long after one could not be made machines boot."""
_FAILURES_MAX: Final = 2
"""So many machines in a row that cannot go on from a template are the template's fault."""


@dataclass
class _Place:
    """One template, or that there is none."""

    template: Template | None = None
    making: "asyncio.Task[LaunchError | None] | None" = None
    """Its result: what those who waited are told, when there is no use in a boot of their own."""
    keeping: "asyncio.Task[None] | None" = None
    not_before: float = 0.0
    failures: int = 0
    """Machines in a row that could not go on from it."""
    is_bad: bool = False
    """Its files are to be removed, not read."""

    def drop(self) -> None:
        """Let go of the template; those who go on from it have copies."""
        if self.template is not None:
            self.template.close()
            self.template = None


class Templates:
    """The templates of one data directory."""

    def __init__(self, host: VmHost, parts: Parts) -> None:
        self._host = host
        self._parts = parts
        self._folder = host.directory / "templates"
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._tasks = Tasks(_report)
        self._common = {"form": _FORM, **parts.facts}

    def prepare(self) -> None:
        """Remove files that are of no use any more. Blocks."""
        now = self._host.clock.now().timestamp()
        template_files.remove_unneeded(self._folder, self._common, _UNUSED_S, now)

    async def cloned(
        self, plan: Plan, clone: Callable[[Template], Awaitable[Launched]]
    ) -> Launched | None:
        """Have `clone` go on from the template for a VM; None when that must boot instead.

        At the first use of an image in a size the template is read, or made,
        while all who want it wait: a boot of their own would take as long.
        Raises `HungError` when its machine hung, as one that boots would, and what
        `clone` does. But one that raises `CloneError` is told to the log only, and
        counted: a template of which several in a row were no use is made anew.
        """
        facts = {**self._common, **_facts_of_plan(plan)}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        place = self._places.setdefault(key, _Place())
        self._places.move_to_end(key)
        await self._filled(place, key, plan, facts)
        if (template := place.template) is None:
            return None
        own = template.copy()
        try:
            launched = await clone(own)
        except CloneError as error:
            _log.warning("clone_failed", template=key, error=error.message, detail=error.detail)
            if place.template is template:
                self._count_failure(place, key)
            return None
        finally:
            own.close()
        if place.template is template:
            place.failures = 0
        return launched

    async def aclose(self) -> None:
        """Let go of all; VMs that came of them live on. Idempotent."""
        await self._tasks.aclose()
        while self._places:
            self._places.popitem()[1].drop()

    def _count_failure(self, place: _Place, key: str) -> None:
        place.failures += 1
        if place.failures % _FAILURES_MAX:
            return
        _log.warning("template_removed", template=key, failures=place.failures)
        place.drop()
        place.is_bad = True
        if place.failures > _FAILURES_MAX:
            # The one before was no use either: it does not lie with them.
            place.not_before = self._host.clock.monotonic() + _AGAIN_S

    # --- making one --------------------------------------------------------------

    async def _filled(self, place: _Place, key: str, plan: Plan, facts: Mapping[str, Any]) -> None:
        """Return when the template is there, or is not to be had. Raises `HungError`."""
        if place.template is not None or self._host.clock.monotonic() < place.not_before:
            return
        if (making := place.making) is None:
            work = self._fill(place, key, plan, facts)
            making = place.making = self._tasks.spawn(f"template {key}", work)
        await asyncio.wait([making])
        if making.cancelled():
            raise LaunchError("the engine is closing")
        if (error := making.result()) is not None:
            # One of its own for each who waited: it gets their traceback.
            raise HungError(error.message, error.detail)

    async def _fill(
        self, place: _Place, key: str, plan: Plan, facts: Mapping[str, Any]
    ) -> LaunchError | None:
        try:
            if place.is_bad:
                await self._remove(place, key)
            place.template = await finish(asyncio.to_thread(self._read, key, facts))
            if place.template is None:
                began = self._host.clock.monotonic()
                place.template = await self._made(plan)
                took_s = round(self._host.clock.monotonic() - began, 2)
                _log.info("template_made", template=key, image=plan.image, took_s=took_s)
                # Nobody has to wait for that.
                place.keeping = self._tasks.spawn(f"keep {key}", self._keep(place, key, facts))
            self._forget_oldest()
        except Exception as error:  # noqa: BLE001 - told, and machines boot instead
            detail = error.detail if isinstance(error, MagsError) else ""
            _log.warning("template_failed", image=plan.image, error=str(error), detail=detail)
            place.not_before = self._host.clock.monotonic() + _AGAIN_S
            return error if isinstance(error, HungError) else None
        finally:
            place.making = None
        return None

    def _read(self, key: str, facts: Mapping[str, Any]) -> Template | None:
        """Return a template from its files, with its disk where VMs have theirs."""
        template = template_files.read(self._folder, key, facts)
        if template is None:
            return None
        try:
            return replace(template, disk=self._host.disks.brought_near(template.disk))
        except BaseException:
            template.close()
            raise

    async def _remove(self, place: _Place, key: str) -> None:
        """Remove the files of a template that is no use."""
        if place.keeping is not None:
            await asyncio.wait([place.keeping])
        await finish(asyncio.to_thread(template_files.remove, self._folder, key))
        place.is_bad = False

    async def _keep(self, place: _Place, key: str, facts: Mapping[str, Any]) -> None:
        if place.template is None:
            return
        copy = place.template.copy()
        try:
            write = asyncio.to_thread(template_files.write, self._folder, key, copy, facts)
            await finish(write)
        except OSError as error:
            _log.warning("template_not_kept", template=key, error=str(error))
        finally:
            copy.close()

    def _forget_oldest(self) -> None:
        there = [key for key, place in self._places.items() if place.template is not None]
        for key in there[: max(0, len(there) - _IN_MEMORY_MAX)]:
            self._places.pop(key).drop()

    async def _made(self, plan: Plan) -> Template:
        """Boot a machine as `plan` wants it, save it and end it."""
        return await booted(lambda: self._made_once(plan), self._parts.boot_s, image=plan.image)

    async def _made_once(self, plan: Plan) -> Template:
        with ExitStack() as undo:
            memory = template_files.new_memory(plan.memory_mb << 20)
            undo.callback(os.close, memory)
            disk, state = await self._saved(plan, memory, undo)
            template_files.seal(memory)
            undo.pop_all()
        return Template(memory, disk, state)

    async def _saved(self, plan: Plan, memory: int, held: ExitStack) -> tuple[int, bytes]:
        """Return disk and devices; `held` closes the disk."""
        host, own = self._host, replace(plan, vm=new_vm_id(), epoch=1, waits=True, log_rate_bytes=0)
        directory = host.run / own.vm
        host.launching.add(own.vm)
        async with undone() as undo:
            undo.callback(host.launching.discard, own.vm)
            undo.callback(run_directory.make(directory))
            undo.callback(_remove_sockets, directory)
            async with undone() as machine:
                kind = BareTemplateLaunch if is_bare(own) else TemplateLaunch
                launched = await kind(host, self._parts, own, directory, memory).run(machine)
                await _prepare(launched.connection, has_root=not is_bare(own))
                state = await self._state(directory)
                disk = self._disk(own)
                held.callback(os.close, disk)
        return disk, state

    def _disk(self, plan: Plan) -> int:
        """Return a descriptor of a machine's disk, which outlives its name."""
        if is_bare(plan):
            return os.memfd_create("none", os.MFD_CLOEXEC)
        return os.open(self._host.disks.path(plan.vm), os.O_RDONLY | os.O_CLOEXEC)

    async def _state(self, directory: Path) -> bytes:
        with ExitStack() as undo:
            file = os.memfd_create("state", os.MFD_CLOEXEC)
            undo.callback(os.close, file)
            async with Monitor.of(directory, self._host.clock) as monitor:
                await monitor.save(file)
            return os.pread(file, os.lseek(file, 0, os.SEEK_END), 0)


def _remove_sockets(directory: Path) -> None:
    run_directory.remove(directory / MACHINE)


async def _prepare(connection: ShimConnection, *, has_root: bool) -> None:
    """Bring what most scripts need into memory, and leave nothing but the agent alive."""
    try:
        if has_root:
            await streams.run(connection, ["/bin/sh", "-c", _WARM_UP], environment=_ENVIRONMENT)
        await streams.control(connection, "quiesce")
    except ShimError as error:
        raise LaunchError("the template's agent does not answer", repr(error)) from error


def _facts_of_plan(plan: Plan) -> dict[str, Any]:
    if not is_bare(plan):
        return qemu_facts.of_plan(plan)
    size = spec.Size.of(plan)
    return {
        "slots": LAYERS_MAX,
        "processors": size.processors,
        "memory_mb": size.memory_mb,
    }


def _report(name: str, error: BaseException) -> None:
    _log.error("a task of the engine failed", task=name, error=repr(error))
