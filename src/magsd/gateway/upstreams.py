"""Connections to servers inside VMs: dialled, kept a moment for the next request, counted.

A VM has a limit on its streams, so there is one here on those to each life of
a VM: who finds none free waits in the order of coming.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from magsd.aio import Clock
from magsd.gateway.base import Lease
from magsd.gateway.http_flow import AnswerError, head_end
from magsd.gateway.ingress_settings import IngressSettings
from magsd.gateway.pages import Refusal
from magsd.guest.dial import DialError, dial
from magsd.guest.transient import Stream
from magsd.model.names import VmId

_HOST: Final = "localhost"
_TRY_AGAIN_S: Final = 0.1
_FORGET_S: Final = 60.0
"""After which a VM that nobody reaches into is one that was not reached before."""
_SWEEP_S: Final = 0.5
_BUSY_RETRY_S: Final = 2


class Upstream:
    """A connection to a server inside, for one request at a time."""

    def __init__(self, stream: Stream, port: int) -> None:
        self.stream = stream
        self.port = port
        self.requests = 0
        """How many it has carried before this one."""
        self.given_back_at = 0.0
        self._rest = b""

    async def head(self, most: int) -> bytes | None:
        """Return the next head; None when the server has ended the connection before it.

        Raises `AnswerError` for more than `most` bytes, or the end within; `ShimError`.
        """
        buffer = bytearray(self._rest)
        searched = 0
        while (end := head_end(buffer, searched)) is None:
            searched = len(buffer)
            if searched > most:
                raise AnswerError(f"the head of the answer is over {most >> 10} KiB")
            data = await self.stream.read()
            if not data:
                if buffer:
                    raise AnswerError("what the server sent is no HTTP answer, or not a whole one")
                return None
            buffer += data
        self._rest = bytes(buffer[end:])
        return bytes(buffer[:end])

    def take_rest(self) -> bytes:
        """Return what came behind the head, once."""
        rest, self._rest = self._rest, b""
        return rest

    @property
    def is_fit(self) -> bool:
        """Whether another request could be sent on it."""
        return not self._rest and self.stream.is_quiet


@dataclass(slots=True)
class _Turn:
    """A request that waits; it gets a connection to its port, or None: the place of one."""

    port: int
    given: asyncio.Future[Upstream | None]


@dataclass(slots=True)
class _Vm:
    """One life of a VM."""

    seen_at: float
    used_at: float
    places: int = 0
    """Taken: by connections in use, idle, or being dialled."""
    idle: dict[int, list[Upstream]] = field(default_factory=dict)
    turns: deque[_Turn] = field(default_factory=deque)
    opened: set[int] = field(default_factory=set)
    """Ports that were found open."""

    def take_idle(self, port: int, not_before: float) -> Upstream | None:
        """Return the connection to `port` that was given back last, if that is not too long ago."""
        kept = self.idle.get(port)
        if kept is None or kept[-1].given_back_at < not_before:
            return None
        upstream = kept.pop()
        if not kept:
            del self.idle[port]
        return upstream

    def next_turn(self) -> _Turn | None:
        """Return who has waited longest."""
        while self.turns:
            turn = self.turns.popleft()
            if not turn.given.done():
                return turn
        return None


Life = tuple[VmId, int]


class Upstreams:
    """All connections to servers inside VMs, of one process."""

    def __init__(self, settings: IngressSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._vms: dict[Life, _Vm] = {}
        self._is_kept = asyncio.Event()

    async def take(self, lease: Lease, port: int, *, idle_max_s: float) -> Upstream:
        """Return a connection to a port, which `give` takes back.

        It is dialled, or has waited for at most `idle_max_s`. Raises `Refusal` when
        there is none to be had, `ShimError` when the VM has ended.
        """
        now = self._clock.monotonic()
        vm = self._vms.setdefault((lease.vm, lease.epoch), _Vm(now, now))
        vm.used_at = now
        while (kept := vm.take_idle(port, now - idle_max_s)) is not None:
            if kept.is_fit:
                return kept
            await self._close(vm, kept)
        given = await self._place(vm, port)
        if given is not None:
            return given
        try:
            return Upstream(await self._dialled(vm, lease, port), port)
        except BaseException:
            self._leave(vm)
            raise

    async def give(self, lease: Lease, upstream: Upstream, *, is_reusable: bool) -> None:
        """Take a connection back; what cannot be used again is closed."""
        vm = self._vms[lease.vm, lease.epoch]
        vm.used_at = upstream.given_back_at = self._clock.monotonic()
        if not is_reusable or not upstream.is_fit:
            await self._close(vm, upstream)
            return
        upstream.requests += 1
        turn = vm.next_turn()
        if turn is None:
            vm.idle.setdefault(upstream.port, []).append(upstream)
            self._is_kept.set()
        elif turn.port == upstream.port:
            turn.given.set_result(upstream)
        else:
            await upstream.stream.aclose()
            turn.given.set_result(None)

    async def sweep(self) -> None:
        """Close what has been idle for too long, until cancelled."""
        while True:
            await self._is_kept.wait()
            await self._clock.sleep(_SWEEP_S)
            now = self._clock.monotonic()
            for vm in list(self._vms.values()):
                for upstream in _drawn(vm, now - self._settings.upstream_idle_s):
                    await self._close(vm, upstream)
            for life, vm in list(self._vms.items()):
                if not vm.places and not vm.turns and vm.used_at < now - _FORGET_S:
                    del self._vms[life]
            if not self._vms:
                self._is_kept.clear()

    async def aclose(self) -> None:
        """Close what is idle. Everything was given back before."""
        for vm in self._vms.values():
            for upstream in _drawn(vm, float("inf")):
                await self._close(vm, upstream)

    # --- inside ----------------------------------------------------------------

    async def _place(self, vm: _Vm, port: int) -> Upstream | None:
        """Wait for a place, or for a connection to `port` itself, which is returned."""
        if vm.places >= self._settings.streams_per_vm:
            for other in _drawn(vm, float("inf"), most=1):
                await self._close(vm, other)
        if vm.places < self._settings.streams_per_vm:
            vm.places += 1
            self._is_kept.set()
            return None
        if len(vm.turns) >= self._settings.waiting_per_vm:
            raise _busy()
        turn = _Turn(port, asyncio.get_running_loop().create_future())
        vm.turns.append(turn)
        try:
            async with asyncio.timeout(self._settings.turn_s):
                return await turn.given
        except BaseException as error:
            await self._pass_on(vm, turn)
            if isinstance(error, TimeoutError):
                raise _busy() from None
            raise

    async def _pass_on(self, vm: _Vm, turn: _Turn) -> None:
        """Let another have what was given to one who is there no more."""
        if not turn.given.done() or turn.given.cancelled():
            turn.given.cancel()
            with suppress(ValueError):
                vm.turns.remove(turn)
        elif (given := turn.given.result()) is None:
            self._leave(vm)
        else:
            await self._close(vm, given)

    async def _dialled(self, vm: _Vm, lease: Lease, port: int) -> Stream:
        while True:
            try:
                stream = await dial(await lease.connection(), _HOST, port)
            except DialError as error:
                if not self._may_open_yet(vm, port, error):
                    raise _not_reached(port, error) from error
                await self._clock.sleep(_TRY_AGAIN_S)
            else:
                vm.opened.add(port)
                return stream

    def _may_open_yet(self, vm: _Vm, port: int, error: DialError) -> bool:
        return (
            error.errno == errno.ECONNREFUSED
            and port not in vm.opened
            and self._clock.monotonic() < vm.seen_at + self._settings.startup_s
        )

    async def _close(self, vm: _Vm, upstream: Upstream) -> None:
        try:
            await upstream.stream.aclose()
        finally:
            self._leave(vm)

    def _leave(self, vm: _Vm) -> None:
        """Give a place to who waits for one, or free it."""
        if (turn := vm.next_turn()) is not None:
            turn.given.set_result(None)
        else:
            vm.places -= 1


def _drawn(vm: _Vm, before: float, most: int | None = None) -> Iterator[Upstream]:
    """Take out those idle connections that were given back before a moment, the oldest first."""
    found = [one for kept in vm.idle.values() for one in kept if one.given_back_at < before]
    found.sort(key=lambda one: one.given_back_at)
    for upstream in found[:most]:
        kept = vm.idle[upstream.port]
        kept.remove(upstream)
        if not kept:
            del vm.idle[upstream.port]
        yield upstream


def _busy() -> Refusal:
    message = "too many requests wait for this VM: try again in a moment"
    return Refusal(503, message, retry_after_s=_BUSY_RETRY_S)


def _not_reached(port: int, error: DialError) -> Refusal:
    if error.errno == errno.ECONNREFUSED:
        return Refusal(
            502,
            f"nothing listens on port {port} of this VM: start the server there, on 0.0.0.0 or "
            "127.0.0.1, and try again",
        )
    return Refusal(502, f"port {port} of this VM cannot be reached: {error}")
