"""The network of a sandbox, tried with real packets from a real one.

What it must reach: a name by DNS, and a host outside. What it must not: this
host, at any of its addresses, where doctor itself listens meanwhile and
counts what arrives; and the address where clouds hand out credentials.
"""

import asyncio
import json
import secrets
import shlex
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from pyroute2 import IPRoute
from typing_extensions import override

from magsd.doctor.check import Check, Verdict
from magsd.model.lifecycle import Status
from magsd.model.records import JobStatus
from magsd.storage import apt_sources

_HOST_CONNECT_S: Final = 3.0
_METADATA: Final = "169.254.169.254"
_RULES: Final = "see `nft list ruleset`; private networks are opened by MAGSD_EGRESS_ALLOW"

_PROGRAM: Final = """\
import json, socket, sys, threading
name, port, listen, nonce, targets = json.loads(sys.argv[1])
told, lock = {}, threading.Lock()
def tell(what, result):
    with lock:
        told[what] = result
def outside():
    try:
        address = socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        return tell("dns", str(error))
    tell("dns", "")
    try:
        socket.create_connection(address, 4).close()
        tell("tcp", "")
    except OSError as error:
        tell("tcp", str(error))
def knock(address, at):
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for _ in range(2):
                udp.sendto(nonce.encode(), (address, at))
    except OSError:
        pass
    try:
        with socket.create_connection((address, at), 1.5) as tcp:
            tcp.sendall(nonce.encode())
            tell("reached " + address, "")
    except OSError:
        pass
work = [threading.Thread(target=outside)] if name else []
work += [threading.Thread(target=knock, args=target) for target in targets]
for thread in work: thread.start()
for thread in work: thread.join()
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Ran:
    """A script that has run in a sandbox."""

    status: JobStatus
    output: str
    """Standard output and error."""
    took_s: float
    """From the submit to the end."""


RunScript = Callable[[str], Awaitable[Ran]]


@dataclass(frozen=True)
class _Target:
    name: str = ""
    """Empty: there is none to try."""
    port: int = 0
    why_not: str = ""


class _Listener:
    """A service of this host that no sandbox may reach."""

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce.encode()
        self._both = asyncio.Event()
        self.port = 0
        self.arrived: set[str] = set()
        """How each knock came that had the nonce: `TCP`, `UDP`."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["_Listener"]:
        """Listen at one port of all addresses, TCP and UDP."""
        server = await asyncio.start_server(self._accepted, "0.0.0.0", 0)  # noqa: S104 - that is it
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self._came),
                local_addr=("0.0.0.0", self.port),  # noqa: S104
            )
            try:
                yield self
            finally:
                transport.close()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._came("TCP", await reader.readexactly(len(self._nonce)))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def _came(self, how: str, data: bytes) -> None:
        if data == self._nonce:
            self.arrived.add(how)
        if self.arrived == {"TCP", "UDP"}:
            self._both.set()

    async def proved(self, address: str) -> bool:
        """Knock from this host, to see that a knock would be noticed."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knock:
            knock.sendto(self._nonce, (address, self.port))
        _, writer = await asyncio.open_connection(address, self.port)
        writer.write(self._nonce)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        try:
            async with asyncio.timeout(_HOST_CONNECT_S):
                await self._both.wait()
        except TimeoutError:
            return False
        self.arrived.clear()
        return True


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, came: Callable[[str, bytes], None]) -> None:
        self._came = came

    @override
    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Note a knock."""
        self._came("UDP", data)


async def network(run: RunScript) -> AsyncIterator[Check]:
    """Try DNS, a connection outwards, and everything that must be refused."""
    nonce = secrets.token_hex(16)
    target = await _target()
    addresses = await asyncio.to_thread(_own_addresses)
    async with _Listener(nonce).listening() as listener:
        if not addresses or not await listener.proved(addresses[0]):
            text = "not tried: this host does not reach its own address"
            yield Check("isolation", Verdict.WARN, text)
            return
        knocks = [(address, listener.port) for address in addresses] + [(_METADATA, 80)]
        asked = json.dumps([target.name, target.port, listener.port, nonce, knocks])
        ran = await run(f"python3 -c {shlex.quote(_PROGRAM)} {shlex.quote(asked)}")
        told = _told(ran)
        if told is None:
            seen = f"not tried: {ran.status.error or ran.output}"
            yield Check("network", Verdict.WARN, seen, "use an image that has python3")
            return
        for check in outwards(target.name, target.port, target.why_not, told):
            yield check
        yield isolation(len(addresses), listener.arrived, told)


def outwards(name: str, port: int, why_not: str, told: dict[str, str]) -> list[Check]:
    """Judge what a sandbox says of DNS and of a connection to a host outside."""
    if why_not:
        return [Check(what, Verdict.WARN, f"not tried: {why_not}") for what in ("dns", "egress")]
    if told.get("dns") != "":
        seen = f"{name} cannot be resolved in a sandbox: {told.get('dns', 'no answer')}"
        step = "a firewall that drops packets to this host's port 53 from mags* is the usual reason"
        return [Check("dns", Verdict.WARN, seen, step)]
    resolved = Check("dns", Verdict.OK, f"a sandbox resolves {name}")
    if told.get("tcp") != "":
        seen = f"{name} port {port} from a sandbox: {told.get('tcp', 'no answer')}"
        return [resolved, Check("egress", Verdict.WARN, seen, _RULES)]
    return [resolved, Check("egress", Verdict.OK, f"a sandbox reaches {name} port {port}")]


def isolation(addresses: int, arrived: Iterable[str], told: dict[str, str]) -> Check:
    """Judge what a sandbox reached that it must not reach; `arrived` is what the host saw."""
    reached = [word.removeprefix("reached ") for word in told if word.startswith("reached ")]
    if reached or arrived:
        how = ", ".join([*sorted(arrived), *sorted(reached)])
        seen = f"a sandbox reached what it must not: {how}"
        step = "stop the service; MAGSD_EGRESS_ALLOW opens it, or rules of others let it through"
        return Check("isolation", Verdict.FAIL, seen, step)
    seen = f"refused by TCP and UDP: this host at {addresses} addresses, and {_METADATA}"
    return Check("isolation", Verdict.OK, seen)


def _told(ran: Ran) -> dict[str, str] | None:
    if ran.status.status is not Status.COMPLETED:
        return None
    try:
        told = json.loads(ran.output.splitlines()[-1])
        return {str(what): str(result)[:200] for what, result in told.items()}
    except (ValueError, IndexError, AttributeError):
        return None


def _own_addresses() -> list[str]:
    """Return the IPv4 addresses of this host, those for sandboxes included, but loopback."""
    with IPRoute() as host:
        found = [message.get_attr("IFA_ADDRESS") for message in host.get_addr(socket.AF_INET)]
    return [address for address in found if not address.startswith("127.")]


async def _target() -> _Target:
    """Find a host outside that this machine reaches itself: the one it has its packages from."""
    mirrors = [urlsplit(source.uri) for source in apt_sources.read_sources()]
    url = next((url for url in mirrors if url.scheme in ("http", "https") and url.hostname), None)
    if url is None or url.hostname is None:
        return _Target(why_not="apt names no host to connect to")
    name, port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_HOST_CONNECT_S):
            _, writer = await asyncio.open_connection(name, port)
    except TimeoutError:
        return _Target(why_not=f"{name} port {port} does not answer this machine itself")
    except OSError as error:
        return _Target(why_not=f"this machine itself cannot reach {name} port {port} ({error})")
    writer.close()
    return _Target(name, port)
