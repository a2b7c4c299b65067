"""Commands that callers run in the VM of a job that runs.

Each has a connection to the VM's shim for itself, and ends with it: a caller
who goes away, and a daemon that ends, leave none behind. The job's actor has
no part in it.
"""

import asyncio
import os
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from magsd.core import environment, launch, outcome
from magsd.core.idle_connections import IdleConnections
from magsd.core.jobs import Jobs
from magsd.core.leases import Lease, Leases
from magsd.core.node import Node
from magsd.engine.base import EndReason
from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.guest.streams import ExecResult
from magsd.guest.wire import PAYLOAD_MAX
from magsd.model.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    MagsError,
    TooLargeError,
)
from magsd.model.names import RequestId, VmId
from magsd.model.records import Executed, Principal

AT_ONCE_MAX: Final = 60
"""Commands in one VM: its shim takes 64 connections, and has others beside these."""
_FIELDS_MAX_BYTES: Final = PAYLOAD_MAX - 256
"""Of a command and all variables: they travel in one frame, with a few words around them."""
_ENVIRONMENTS_MAX: Final = 256
"""Of so many jobs it is known, those that were asked for last: a few KB each, 64 at most."""
_END_S: Final = 2.0
"""How long a VM whose connection broke may take to be known as ended."""
_OWN_BYTES: Final = 64 * 1024
"""Of its output each command may keep so much, whatever others do."""

_log = structlog.get_logger()


class Execs:
    """The commands that run in the VMs of a node for callers."""

    def __init__(self, node: Node, jobs: Jobs, leases: Leases) -> None:
        self._node = node
        self._jobs = jobs
        self._leases = leases
        self._running: Counter[VmId] = Counter()
        self._memory = _Memory(node.settings.exec_output_bytes)
        self._connections = IdleConnections()
        self._environments: dict[RequestId, Mapping[str, str]] = {}

    async def aclose(self) -> None:
        """End connections that wait to be used again."""
        await self._connections.aclose()

    async def run(self, principal: Principal, ref: str, command: str, timeout_s: int) -> Executed:
        """Run a shell command in the VM of a running job, to its end or for `timeout_s`.

        Cancelled, it is killed. Raises `InvalidError` and `TooLargeError` for
        what cannot be run, `NotFoundError`, `ConflictError` when the job does
        not run or its VM ends meanwhile, `CapacityError` for one too many.
        """
        self._check(command, timeout_s)
        status = await self._jobs.find(principal, ref)
        variables = await self._environment(status.request_id)
        _check_size(command, variables)
        began = self._node.clock.monotonic()
        use = _Use(self._memory)
        try:
            async with self._leases.hold(status) as lease:
                result = await self._in_vm(lease, command, variables, timeout_s, use)
        except BaseException:
            use.release()
            raise
        executed = Executed(
            exit_code=_exit_code(result),
            stdout=result.stdout,
            stderr=result.stderr,
            duration_ms=int((self._node.clock.monotonic() - began) * 1000),
            is_truncated=result.is_truncated,
        )
        weakref.finalize(executed, use.release)
        self._node.metrics.executed(lease.run.engine, has_timed_out=result.has_timed_out)
        return executed

    async def _in_vm(
        self,
        lease: Lease,
        command: str,
        variables: Mapping[str, str],
        timeout_s: int,
        use: "_Use",
    ) -> ExecResult:
        with self._place(lease.handle.vm):
            try:
                async with self._connections.use(lease.handle) as connection:
                    return await streams.run(
                        connection,
                        ["/bin/sh", "-c", command],
                        environment=variables,
                        cwd=launch.HOME,
                        may_keep=use.take,
                        timeout_s=timeout_s,
                    )
            except (ShimError, OSError, TimeoutError) as error:
                raise await self._failure(lease, error) from error

    def _check(self, command: str, timeout_s: int) -> None:
        if not command.strip():
            raise InvalidError("command must not be blank")
        if "\0" in command:
            raise InvalidError("command holds a NUL character")
        most = self._node.settings.limits.max_timeout_s
        if not 1 <= timeout_s <= most:
            raise InvalidError(f"timeout must be between 1 and {most} on this service")

    @contextmanager
    def _place(self, vm: VmId) -> Iterator[None]:
        """Count a command inside the block. Raises `CapacityError` for one too many."""
        if self._running[vm] >= AT_ONCE_MAX:
            raise CapacityError(
                f"{AT_ONCE_MAX} commands run in this VM already: try again when one has ended"
            )
        self._running[vm] += 1
        try:
            yield
        finally:
            self._running[vm] -= 1
            if not self._running[vm]:
                del self._running[vm]

    async def _environment(self, request_id: RequestId) -> Mapping[str, str]:
        """Return the environment of a job, which never changes."""
        known = self._environments.pop(request_id, None)
        if known is None:
            known = await environment.of_job(self._node.database, request_id)
        if len(self._environments) >= _ENVIRONMENTS_MAX:
            del self._environments[next(iter(self._environments))]
        self._environments[request_id] = known
        return known

    async def _failure(self, lease: Lease, error: Exception) -> MagsError:
        """Return what to say of a command whose VM or connection failed."""
        engine = self._node.engines[lease.run.engine]
        try:
            async with asyncio.timeout(_END_S):
                vm_end = await engine.wait(lease.handle)
        except TimeoutError:
            text = "the VM lives and could not run the command at this moment: try again"
            return CapacityError(text, repr(error))
        if vm_end.reason is EndReason.KILLED:
            return ConflictError("the job ended while the command ran: see its status")
        why = outcome.of_lost_vm(vm_end).error
        return ConflictError(f"the command was lost with its VM: {why}", vm_end.detail)


def _check_size(command: str, variables: Mapping[str, str]) -> None:
    try:
        size = len(command.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidError("command holds half of a surrogate pair: send UTF-8") from None
    size += sum(len(f"env={name}={value}".encode()) + 1 for name, value in variables.items())
    if size > _FIELDS_MAX_BYTES:
        raise TooLargeError(
            f"command and environment have {size} bytes together, and {_FIELDS_MAX_BYTES} is the "
            "limit: write what is long into a file first"
        )


def _exit_code(result: ExecResult) -> int:
    if result.has_timed_out:
        return outcome.EXIT_TIMEOUT
    if os.WIFSIGNALED(result.wait_status):
        return outcome.EXIT_SIGNAL_BASE + os.WTERMSIG(result.wait_status)
    return os.WEXITSTATUS(result.wait_status)


class _Memory:
    """What all commands together may keep of their output, beside each one's own small share."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes


@dataclass(slots=True)
class _Use:
    """What one command has of it, until its output is gone."""

    memory: _Memory
    own_bytes: int = _OWN_BYTES
    taken_bytes: int = field(default=0)

    def take(self, count: int) -> int:
        """Return how many of `count` bytes may be kept."""
        own = min(count, self.own_bytes)
        self.own_bytes -= own
        more = min(count - own, self.memory.free_bytes)
        self.memory.free_bytes -= more
        self.taken_bytes += more
        return own + more

    def release(self) -> None:
        """Give back what was taken. Idempotent."""
        self.memory.free_bytes += self.taken_bytes
        self.taken_bytes = 0
