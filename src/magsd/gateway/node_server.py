"""The node's side of the socket to one edge: answers what it asks, and bounds what it may hold.

An edge is less trusted than the node. It can find jobs that something was
granted of and use their VMs by streams, and that is all. What breaks the
protocol, or asks for too much, loses the connection; all its leases end with it.
"""

import asyncio
import socket
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from magsd.aio import Tasks
from magsd.core.doors import Doors
from magsd.core.leases import Lease
from magsd.gateway import messages
from magsd.gateway.messages import (
    CALL_MAX_BYTES,
    VERSION,
    VM_ENDED,
    Answer,
    Connect,
    FindKey,
    FindUrl,
    Hello,
    Hold,
    Refusal,
    Release,
)
from magsd.gateway.pipe import Pipe
from magsd.guest.shim import ShimError
from magsd.model.errors import CapacityError, ErrorCode, MagsError
from magsd.model.names import RequestId

LEASES_MAX: Final = 16_384
"""Held or waited for by one edge."""
_CALLS_MAX: Final = 512
"""Under way for one edge, beside leases: those that look something up or connect."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    """A lease of an edge, or its wait for one."""

    released: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Any] | None = None
    lease: Lease | None = None


class NodeServer:
    """Serves one edge until either side ends."""

    def __init__(self, sock: socket.socket, doors: Doors) -> None:
        """Take over `sock`."""
        self._doors = doors
        self._pipe = Pipe(
            sock, on_message=self._take, on_end=self._lose, message_max=CALL_MAX_BYTES
        )
        self._tasks = Tasks(_report)
        self._held: dict[int, _Held] = {}
        self._calls = 0
        self._has_ended = asyncio.Event()
        self.is_greeted = asyncio.Event()
        """The edge has said which version it speaks: it serves."""

    def start(self) -> None:
        """Begin to listen to the edge."""
        self._pipe.start()

    @property
    def is_serving(self) -> bool:
        """Whether the edge has greeted, and the connection is good still."""
        return self.is_greeted.is_set() and not self._has_ended.is_set()

    @property
    def leases(self) -> int:
        """How many leases the edge holds or waits for."""
        return len(self._held)

    async def ended(self) -> str:
        """Wait until the connection has ended; return why."""
        await self._has_ended.wait()
        assert self._pipe.end_reason is not None
        return self._pipe.end_reason

    async def aclose(self) -> None:
        """End the connection and every lease. Idempotent."""
        self._pipe.end("it was closed here")
        await self._tasks.aclose()

    def _lose(self, _reason: str) -> None:
        for held in self._held.values():
            _let_go(held)
        self._has_ended.set()

    # --- what is asked ---------------------------------------------------------

    def _take(self, data: bytes) -> None:
        """Receive a call. Raises `ValueError` for what an edge may not send."""
        call = messages.decode_call(data)
        if isinstance(call, Hello):
            self._greet(call)
            return
        if not self.is_greeted.is_set():
            raise ValueError("a call before the greeting")
        match call:
            case FindUrl():
                self._answer(self._found_url(call))
            case FindKey():
                self._begin(call.id, self._find_key(call))
            case Hold():
                self._hold(call)
            case Connect():
                self._begin(call.id, self._connect(call, self._lease_of(call)))
            case Release():
                self._release(call.lease)

    def _greet(self, hello: Hello) -> None:
        if hello.version != VERSION or self.is_greeted.is_set():
            raise ValueError(f"an edge of version {hello.version}, and {VERSION} is spoken here")
        self.is_greeted.set()

    def _found_url(self, call: FindUrl) -> Answer:
        found = self._doors.find_url(call.host)
        if found is None:
            return Answer(id=call.id)
        return Answer(id=call.id, request_id=found[0], port=found[1])

    async def _find_key(self, call: FindKey) -> None:
        found = await self._doors.find_key(call.fingerprint)
        if found is None:
            self._answer(Answer(id=call.id))
        else:
            request_id, environment = found
            answer = Answer(id=call.id, request_id=request_id, environment=dict(environment))
            self._answer(answer)

    # --- leases ----------------------------------------------------------------

    def _hold(self, call: Hold) -> None:
        if call.id in self._held:
            raise ValueError("a lease whose name is taken")
        if len(self._held) >= LEASES_MAX:
            full = CapacityError("too many requests are under way: try again in a moment")
            self._answer(_refusal(call.id, full))
            return
        held = self._held[call.id] = _Held()
        held.task = self._tasks.spawn(f"lease {call.id}", self._keep(call, held))
        held.task.add_done_callback(lambda _: self._held.pop(call.id, None))

    async def _keep(self, call: Hold, held: _Held) -> None:
        """Hold a lease until it is released."""
        try:
            async with self._doors.lease(RequestId(call.request_id)) as lease:
                held.lease = lease
                self._answer(Answer(id=call.id, vm=lease.handle.vm, epoch=lease.handle.epoch))
                await held.released.wait()
        except MagsError as error:
            self._answer(_refusal(call.id, error))

    def _release(self, name: int) -> None:
        if (held := self._held.get(name)) is not None:
            _let_go(held)

    def _lease_of(self, call: Connect) -> Lease:
        held = self._held.get(call.lease)
        if held is None or held.lease is None or held.released.is_set():
            raise ValueError("a connection was asked for without a lease")
        return held.lease

    async def _connect(self, call: Connect, lease: Lease) -> None:
        try:
            connection = await self._doors.connect(lease)
        except ShimError as error:
            refusal = Refusal(code=VM_ENDED, message=f"the VM has ended: {error}")
            self._answer(Answer(id=call.id, refusal=refusal))
        else:
            self._answer(Answer(id=call.id, has_socket=True), connection)

    # --- answers ---------------------------------------------------------------

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, which answers call `number`."""
        if self._calls >= _CALLS_MAX:
            work.close()
            busy = CapacityError("too much is asked at once: try again in a moment")
            self._answer(_refusal(number, busy))
            return
        self._calls += 1
        self._tasks.spawn(f"call {number}", self._done(number, work))

    async def _done(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except MagsError as error:
            self._answer(_refusal(number, error))
        finally:
            self._calls -= 1

    def _answer(self, answer: Answer, connection: socket.socket | None = None) -> None:
        self._pipe.send(messages.encode(answer), connection)


def _let_go(held: _Held) -> None:
    held.released.set()
    if held.lease is None and held.task is not None:
        held.task.cancel()


def _refusal(number: int, error: MagsError) -> Answer:
    if error.code is ErrorCode.INTERNAL:
        _log.error("edge_call_failed", error=error.message, detail=error.detail)
    return Answer(id=number, refusal=Refusal(code=error.code, message=error.message))


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
