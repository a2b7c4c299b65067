"""The edge's side of the socket to its node: `base.Node` for the gateways.

Calls go out at once and answers come in any order. All leases of one VM share
one connection to its shim, which is opened when it is needed first.
"""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from magsd.aio import SingleFlight, Tasks
from magsd.gateway import messages
from magsd.gateway.base import KeyTarget, Lease, UrlTarget
from magsd.gateway.messages import (
    ANSWER_MAX_BYTES,
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
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import CapacityError, ConflictError, ErrorCode, MagsError, NotFoundError
from magsd.model.names import RequestId, VmId

_Vm = tuple[VmId, int]
_Answered = tuple[Answer, socket.socket | None]
_AWAY: Final = "the service is not there at this moment: try again in a few seconds"
_HOST_MAX: Final = 253
_FINGERPRINT_MAX: Final = 64
_ERRORS: Final[dict[str, type[MagsError]]] = {
    ErrorCode.NOT_FOUND: NotFoundError,
    ErrorCode.CONFLICT: ConflictError,
}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Lease:
    """See `base.Lease`."""

    vm: VmId
    epoch: int
    connect: Callable[[], Awaitable[ShimConnection]]

    async def connection(self) -> ShimConnection:
        """See `base.Lease`."""
        return await self.connect()


class NodeClient:
    """A node, as an edge sees it. See `base.Node`."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over the socket that the node gave."""
        self._pipe = Pipe(
            sock,
            on_message=self._take,
            on_end=self._lose,
            message_max=ANSWER_MAX_BYTES,
            takes_sockets=True,
        )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[_Answered]] = {}
        """Calls by number. The answer to one that was given up finds nobody here."""
        self._connections: dict[_Vm, ShimConnection] = {}
        self._connecting = SingleFlight()
        self._tasks = Tasks(_report)
        self._has_ended = asyncio.Event()

    def start(self) -> None:
        """Begin to speak with the node."""
        self._pipe.start()
        self._pipe.send(messages.encode_call(Hello(version=VERSION)))

    async def ended(self) -> None:
        """Wait until the node is gone."""
        await self._has_ended.wait()

    async def aclose(self) -> None:
        """Let go of node and VMs. Idempotent."""
        self._pipe.end("it was closed here")
        await self._connecting.idle()
        await self._tasks.aclose()
        for connection in list(self._connections.values()):
            await connection.aclose()
        self._connections.clear()

    # --- base.Node -------------------------------------------------------------

    async def find_url(self, host: str) -> UrlTarget | None:
        """See `base.Node`."""
        if len(host) > _HOST_MAX:
            return None
        number = next(self._numbers)
        answer, _ = await self._asked(number, FindUrl(id=number, host=host))
        if answer.request_id is None or answer.port is None:
            return None
        return UrlTarget(RequestId(answer.request_id), answer.port)

    async def find_key(self, fingerprint: str) -> KeyTarget | None:
        """See `base.Node`."""
        if len(fingerprint) > _FINGERPRINT_MAX:
            return None
        number = next(self._numbers)
        answer, _ = await self._asked(number, FindKey(id=number, fingerprint=fingerprint))
        if answer.request_id is None:
            return None
        return KeyTarget(RequestId(answer.request_id), answer.environment or {})

    @asynccontextmanager
    async def lease(self, request_id: RequestId) -> AsyncIterator[Lease]:
        """See `base.Node`."""
        number = next(self._numbers)
        try:
            answer, _ = await self._asked(number, Hold(id=number, request_id=request_id))
            assert answer.vm is not None
            assert answer.epoch is not None
            vm = VmId(answer.vm), answer.epoch
            yield _Lease(*vm, partial(self._connection, number, vm))
        finally:
            # Also for one that was not waited for to its end.
            self._pipe.send(messages.encode_call(Release(lease=number)))

    # --- connections to VMs ----------------------------------------------------

    async def _connection(self, lease: int, vm: _Vm) -> ShimConnection:
        known = self._connections.get(vm)
        if known is not None and known.is_open:
            return known
        found: ShimConnection | str
        found = await self._connecting.do(vm, partial(self._connected, lease, vm))
        if isinstance(found, str):
            raise ShimError(found)
        return found

    async def _connected(self, lease: int, vm: _Vm) -> ShimConnection | str:
        """Return a connection, or why there is none: nobody may be there to be told any more."""
        try:
            return await self._connect(lease, vm)
        except (ShimError, MagsError) as error:
            return str(error)

    async def _connect(self, lease: int, vm: _Vm) -> ShimConnection:
        number = next(self._numbers)
        _, sock = await self._asked(number, Connect(id=number, lease=lease))
        if sock is None:
            raise ShimError("the node gave no connection")
        connection = await ShimConnection.from_socket(sock, hello=False)
        self._connections[vm] = connection
        self._tasks.spawn(f"connection {vm[0]}", self._forget(vm, connection))
        return connection

    async def _forget(self, vm: _Vm, connection: ShimConnection) -> None:
        await connection.closed()
        if self._connections.get(vm) is connection:
            del self._connections[vm]

    # --- calls and answers -----------------------------------------------------

    async def _asked(self, number: int, call: Any) -> _Answered:
        """Return the answer to a call. Raises what it was refused by, `CapacityError` when
        the node is away."""
        if self._pipe.end_reason is not None:
            raise CapacityError(_AWAY)
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        self._pipe.send(messages.encode_call(call))
        try:
            answer, sock = await waiting
        finally:
            self._waiting.pop(number, None)
        if answer.refusal is not None:
            raise _error(answer.refusal)
        return answer, sock

    def _take(self, data: bytes) -> None:
        answer = messages.decode_answer(data)
        sock = self._pipe.take_socket() if answer.has_socket else None
        waiting = self._waiting.pop(answer.id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result((answer, sock))
        elif sock is not None:
            sock.close()

    def _lose(self, reason: str) -> None:
        _log.info("node_gone", why=reason)
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            if not each.done():
                each.set_exception(CapacityError(_AWAY))
        self._has_ended.set()


def _error(refusal: Refusal) -> Exception:
    if refusal.code == VM_ENDED:
        return ShimError(refusal.message)
    return _ERRORS.get(refusal.code, CapacityError)(refusal.message)


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
