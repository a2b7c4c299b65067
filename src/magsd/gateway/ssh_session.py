"""One session: a login shell, a command, or SFTP, between a client's channel and the guest."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Final, cast

import asyncssh
import structlog
from typing_extensions import override

from magsd.gateway import ssh_login as login
from magsd.gateway.ssh_channels import STDERR, ChannelEnd, SessionChannel
from magsd.gateway.ssh_visit import Visit
from magsd.guest import streams
from magsd.guest.link import Change
from magsd.guest.process import Process, Terminal, spawn
from magsd.guest.sftp import sftp
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.transient import Stream
from magsd.guest.wire import Channel
from magsd.model.errors import MagsError

_FAILED: Final = 255
"""What `ssh` itself ends with when something is wrong that is not the command's doing."""
_SFTP: Final = "sftp"
_FAREWELL_S: Final = 2.0

_log = structlog.get_logger()


class Session(ChannelEnd, asyncssh.SSHServerSession[bytes]):
    """The callbacks of a session's channel; `asyncssh` has the words for each."""

    channel: SessionChannel

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._command: str | None = None
        self._is_sftp = False
        self._terminal: Terminal | None = None
        self._size: tuple[int, int] | None = None
        self._signals: dict[int, None] = {}
        self._told = Change()
        self._task: asyncio.Task[None] | None = None

    @override
    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """See `asyncssh`."""
        assert isinstance(chan, SessionChannel)
        self.channel = chan
        self._visit.sessions += 1

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncssh`."""
        self._visit.sessions -= 1
        if self._task is not None:
            self._task.cancel()

    # --- what is asked for ------------------------------------------------------

    @override
    def pty_requested(
        self,
        term_type: str,
        term_size: tuple[int, int, int, int],
        term_modes: Mapping[int, int],
    ) -> bool:
        """See `asyncssh`."""
        kind = login.terminal_type(term_type)
        if kind is None:
            return False
        columns, rows = login.terminal_size(*term_size[:2])
        self._terminal = Terminal(kind, columns, rows, login.terminal_modes(term_modes))
        return True

    @override
    def shell_requested(self) -> bool:
        """See `asyncssh`."""
        return True

    @override
    def exec_requested(self, command: str) -> bool:
        """See `asyncssh`."""
        self._command = command
        return "\0" not in command

    @override
    def subsystem_requested(self, subsystem: str) -> bool:
        """See `asyncssh`."""
        self._is_sftp = subsystem == _SFTP
        return self._is_sftp

    @override
    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """See `asyncssh`."""
        self._size = login.terminal_size(width, height)
        self._told.tell()

    @override
    def signal_received(self, signal: str) -> None:
        """See `asyncssh`."""
        number = login.signal_number(signal)
        if number is not None:
            self._signals[number] = None
            self._told.tell()

    @override
    def break_received(self, msec: int) -> bool:
        """See `asyncssh`. On a line with a terminal it interrupts, elsewhere it means nothing."""
        if self._terminal is None:
            return False
        self.signal_received("INT")
        return True

    @override
    def session_started(self) -> None:
        """See `asyncssh`."""
        self._task = self._visit.spawn("ssh-session", self._run())

    # --- what is done -----------------------------------------------------------

    async def _run(self) -> None:
        try:
            shim = await self._visit.shim()
            if self._is_sftp:
                await self._transfer(shim)
            else:
                await self._execute(shim)
        except (MagsError, ShimError, ValueError) as error:
            await self._fail(self._visit.why(error))
        except OSError as error:  # The channel was closed under it.
            _log.debug("ssh_channel_closed", error=str(error))

    async def _transfer(self, shim: ShimConnection) -> None:
        async with await sftp(shim) as stream, self._visit.beside(self._feed(stream)):
            while data := await stream.read():
                await self.channel.send(data)
            (await stream.exit()).check("sftp")
        await self._leave(login.Ended(0))

    async def _execute(self, shim: ShimConnection) -> None:
        shell = login.shell_of(await _beginning_of(shim, login.PASSWD))
        argv, name = login.arguments(shell, self._command)
        variables = self._environment(shell)
        login.check_size(argv, variables)
        process = await spawn(
            shim,
            argv,
            environment=variables,
            cwd=login.HOME,
            terminal=self._terminal,
            login_name=name,
        )
        async with (
            process,
            self._visit.beside(self._feed(process), self._control(process)),
        ):
            while (piece := await process.read_any()) is not None:
                channel, data = piece
                await self.channel.send(data, STDERR if channel is Channel.ERR else None)
            status = await process.wait()
        await self._leave(login.ended(status))

    def _environment(self, shell: str) -> dict[str, str]:
        return login.environment(
            self._visit.target.environment,
            self.channel.variables,
            shell=shell,
            terminal=None if self._terminal is None else self._terminal.term,
            connection=_connection_of(self.channel),
        )

    async def _feed(self, far: Stream | Process) -> None:
        while data := await self.channel.read():
            await far.write(data)
        await far.write_eof()

    async def _control(self, process: Process) -> None:
        """Hand on signals and sizes: each once, however often they came meanwhile."""
        while True:
            while self._signals:
                number = next(iter(self._signals))
                del self._signals[number]
                await process.signal(number)
            if self._terminal is not None and self._size is not None:
                size, self._size = self._size, None
                await process.resize(*size)
            await self._told.wait()

    # --- the end ----------------------------------------------------------------

    async def _leave(self, ended: login.Ended) -> None:
        await self.channel.drained()
        self.channel.write_eof()
        if ended.signal:
            self.channel.exit_with_signal(ended.signal, ended.has_dumped_core)
        else:
            self.channel.exit(ended.exit_code)

    async def _fail(self, why: str) -> None:
        """Say why there is nothing more, and end as `ssh` does when it is not the command's doing.

        A client that takes nothing is not waited for.
        """
        line_end = "\n" if self._terminal is None else "\r\n"
        text = f"{'' if self._terminal is None else line_end}mags: {why}{line_end}"
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self.channel.send(text.encode("utf-8", "replace"), STDERR)
                await self.channel.drained()
        self.channel.exit(_FAILED)


async def _beginning_of(shim: ShimConnection, path: str) -> bytes:
    """Return the first bytes of a guest's file, none when there is no such file."""
    content = bytearray()
    with suppress(ShimError):
        reading = cast("AsyncGenerator[bytes]", streams.read_file(shim, path))
        async with aclosing(reading) as pieces:
            async for piece in pieces:
                content += piece
                if len(content) >= login.PASSWD_MAX_BYTES:
                    break
    return bytes(content[: login.PASSWD_MAX_BYTES])


def _connection_of(channel: SessionChannel) -> str:
    ends = [channel.get_extra_info(name) or ("", 0) for name in ("peername", "sockname")]
    return " ".join(f"{end[0] or 'unknown'} {end[1]}" for end in ends)
