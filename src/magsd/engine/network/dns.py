"""The DNS forwarder's process, from the daemon's side: start, find again, replace, end.

One an instance. It outlives the daemon, because the VMs do: `dns.json` in the
run directory says which process it is. What it does with a query is in
`magsd.engine.dns_forwarder`.
"""

import asyncio
import contextlib
import importlib
import json
import os
import pwd
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from magsd.engine.process import Detached, ProcessError, start_detached
from magsd.model.errors import LaunchError

_PACKAGE: Final = "magsd.engine.dns_forwarder"
_START_S: Final = 15.0
_STOP_S: Final = 2.0


@dataclass(frozen=True)
class _Record:
    """Which process the forwarder is, as it stands in `dns.json`."""

    pid: int
    start_time: int
    boot_id: str
    version: str
    """A hash of its program, its address and its user: another one is replaced."""


class DnsForwarder:
    """The forwarder of one instance. Not for two callers at once."""

    def __init__(
        self, *, address: IPv4Address, user: str, directory: Path, resolv_conf: Path
    ) -> None:
        """`address` is one of the host's; `directory` holds the record, policy and log."""
        self._address = str(address)
        self._user = user
        self._resolv_conf = str(resolv_conf)
        self._record_path = directory / "dns.json"
        self._policy_path = directory / "dns-policy.json"
        self._log_path = directory / "dns.log"
        self._process: Detached | None = None

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    def set_policy(self, denied: Iterable[IPv4Network], allowed: Iterable[IPv4Network]) -> None:
        """Write what answers may name. The forwarder sees it at its next query."""
        text = json.dumps(
            {"denied": [*map(str, denied)], "allowed": [*map(str, allowed)]}, indent=1
        ).encode()
        # In place: the forwarder has the file open, and no right to open another.
        descriptor = os.open(self._policy_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, text, 0)
            os.ftruncate(descriptor, len(text))
        finally:
            os.close(descriptor)

    async def open(self) -> bool:
        """Find the forwarder, or start it; tell whether it was found.

        `set_policy` comes before. Raises `LaunchError`.
        """
        record = self._read_record()
        if record is not None and record.boot_id == _boot_id():
            self._process = Detached.find(record.pid, record.start_time)
        if record is not None and self._process is not None:
            if record.version == self._version():
                return True
            await self.stop()
        await self._start()
        return False

    async def wait_ended(self) -> None:
        """Return when the process has ended by itself or otherwise."""
        if self._process is not None:
            await self._process.wait()

    def let_go(self) -> None:
        """Leave the process to the VMs that live on."""
        if self._process is not None:
            self._process.close()
            self._process = None

    async def stop(self) -> None:
        """End the process and forget it. Idempotent."""
        if (process := self._process) is not None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                process.send_signal(signal.SIGKILL)
                await process.wait()
            self.let_go()
        self._record_path.unlink(missing_ok=True)

    async def remove(self) -> None:
        """End the process and delete its files. Idempotent."""
        await self.stop()
        self._policy_path.unlink(missing_ok=True)
        self._log_path.unlink(missing_ok=True)

    async def _start(self) -> None:
        _check_user(self._user)
        with contextlib.ExitStack() as undo:
            udp = undo.enter_context(self._listen(socket.SOCK_DGRAM))
            tcp = undo.enter_context(self._listen(socket.SOCK_STREAM))
            policy = undo.enter_context(self._policy_path.open("rb"))
            log = undo.enter_context(self._log_path.open("wb"))
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                descriptors = {
                    "udp_fd": udp.fileno(),
                    "tcp_fd": tcp.fileno(),
                    "policy_fd": policy.fileno(),
                    "control_fd": theirs.fileno(),
                }
                plan = {
                    **descriptors,
                    "address": self._address,
                    "user": self._user,
                    "resolv_conf": self._resolv_conf,
                }
                self._process = process = _start_process(plan, descriptors.values(), log.fileno())
            if not await _says_ready(ours):
                await self.stop()
                printed = self._log_path.read_text(errors="replace")[-2000:]
                raise LaunchError("the DNS forwarder could not be started", printed)
            record = _Record(process.pid, process.start_time, _boot_id(), self._version())
            self._record_path.write_text(json.dumps(asdict(record)))
            ours.send(b"go")

    def _listen(self, kind: socket.SocketKind) -> socket.socket:
        listener = socket.socket(socket.AF_INET, kind)
        try:
            if kind == socket.SOCK_STREAM:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._address, 53))
            if kind == socket.SOCK_STREAM:
                listener.listen(64)
        except OSError as error:
            listener.close()
            raise LaunchError(
                f"port 53 of {self._address} is taken: end what listens there "
                f"(`ss -lnp 'sport = :53'` names it), or choose another SLOT_NET",
                str(error),
            ) from error
        return listener

    def _read_record(self) -> _Record | None:
        try:
            return _Record(**json.loads(self._record_path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _version(self) -> str:
        package = Path(str(importlib.import_module(_PACKAGE).__file__)).parent
        digest = sha256(f"{self._address} {self._user} {self._resolv_conf}".encode())
        for path in sorted(package.glob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def _start_process(plan: object, descriptors: Iterable[int], output: int) -> Detached:
    try:
        return start_detached(
            [sys.executable, "-I", "-m", _PACKAGE, json.dumps(plan)],
            pass_fds=tuple(descriptors),
            cwd=Path("/"),
            env={"LANG": "C.UTF-8"},
            output=output,
        )
    except ProcessError as error:
        raise LaunchError("the DNS forwarder could not be started", error.detail) from error


def _check_user(user: str) -> None:
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise LaunchError(
            f"the user {user} does not exist: "
            f"`useradd --system --no-create-home --shell /usr/sbin/nologin {user}` makes it"
        ) from None


async def _says_ready(control: socket.socket) -> bool:
    control.setblocking(False)
    try:
        async with asyncio.timeout(_START_S):
            return await asyncio.get_running_loop().sock_recv(control, 5) == b"ready"
    except (TimeoutError, OSError):
        return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
