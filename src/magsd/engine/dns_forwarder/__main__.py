"""The process: its sockets, its rights, its end.

The one argument is an object of JSON that `magsd.engine.network.dns` writes.
"""

import asyncio
import ctypes
import json
import os
import pwd
import resource
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from typing_extensions import override

from magsd.engine.dns_forwarder.resolve import Forwarder
from magsd.engine.dns_forwarder.screen import Limits

_QUERY_BYTES: Final = 1232
_IDLE_S: Final = 10.0
_CONNECTIONS: Final = 128
_CONNECTIONS_PER_SOURCE: Final = 16
_PR_SET_NO_NEW_PRIVS: Final = 38

Source = tuple[Any, ...]


class Server(asyncio.DatagramProtocol):
    """The two sockets that guests speak to."""

    def __init__(self, forwarder: Forwarder, tasks: asyncio.TaskGroup) -> None:
        self._forwarder = forwarder
        self._tasks = tasks
        self._limits = Limits()
        self._connections: Counter[str] = Counter()
        self._transport: asyncio.DatagramTransport | None = None

    @override
    def connection_made(self, transport: Any) -> None:
        """Keep the way back."""
        self._transport = transport

    @override
    def datagram_received(self, data: bytes, addr: Source) -> None:
        """Answer one query, or drop it."""
        if self._admits(data, addr[0]):
            self._tasks.create_task(self._answer_datagram(data, addr))

    def _admits(self, query: bytes, source: str) -> bool:
        now = asyncio.get_running_loop().time()
        return len(query) <= _QUERY_BYTES and self._limits.admits(source, now)

    async def _answer_datagram(self, query: bytes, addr: Source) -> None:
        answer = await self._answer(query, addr[0], by_tcp=False)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)

    async def _answer(self, query: bytes, source: str, *, by_tcp: bool) -> bytes | None:
        with self._limits.in_flight(source):
            try:
                return await self._forwarder.answer(query, by_tcp=by_tcp)
            except Exception as error:  # noqa: BLE001 - one guest's query must not end the process
                print(f"dropped a query: {error!r}"[:500], file=sys.stderr)  # noqa: T201
                return None

    async def serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer the queries of one TCP connection, one after the other."""
        source = writer.get_extra_info("peername")[0]
        self._connections[source] += 1
        try:
            if self._has_room(source):
                async with asyncio.timeout(_IDLE_S) as idle:
                    while await self._serve_query(reader, writer, source):
                        idle.reschedule(asyncio.get_running_loop().time() + _IDLE_S)
        except (OSError, EOFError, TimeoutError):
            pass  # the guest's end of it
        finally:
            self._connections[source] -= 1
            if not self._connections[source]:
                del self._connections[source]
            writer.close()

    def _has_room(self, source: str) -> bool:
        return (
            self._connections[source] <= _CONNECTIONS_PER_SOURCE
            and self._connections.total() <= _CONNECTIONS
        )

    async def _serve_query(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str
    ) -> bool:
        length = int.from_bytes(await reader.readexactly(2), "big")
        if length > _QUERY_BYTES:
            return False
        query = await reader.readexactly(length)
        if not self._admits(query, source):
            return False
        answer = await self._answer(query, source, by_tcp=True)
        if answer is None:
            return False
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        return True


async def _serve(forwarder: Forwarder, udp: socket.socket, tcp: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    async with asyncio.TaskGroup() as tasks:
        transport, server = await loop.create_datagram_endpoint(
            lambda: Server(forwarder, tasks), sock=udp
        )
        listener = await asyncio.start_server(server.serve_connection, sock=tcp, limit=4096)
        await ended.wait()
        transport.close()
        listener.close()


def _drop_privileges(user: str) -> None:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    if ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError("no_new_privs could not be set")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))


def main(arguments: Iterable[str]) -> int:
    """Serve until SIGTERM. The one argument is an object of JSON that `dns` writes."""
    (text,) = arguments
    plan = json.loads(text)
    os.chdir("/")
    control = socket.socket(fileno=plan["control_fd"])
    udp = socket.socket(fileno=plan["udp_fd"])
    tcp = socket.socket(fileno=plan["tcp_fd"])
    forwarder = Forwarder(
        policy_fd=plan["policy_fd"], resolv_conf=plan["resolv_conf"], own=plan["address"]
    )
    _drop_privileges(plan["user"])
    # The daemon writes down who we are before we may begin; if it dies there, so do we.
    control.sendall(b"ready")
    if control.recv(2) != b"go":
        return 1
    control.close()
    asyncio.run(_serve(forwarder, udp, tcp))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
