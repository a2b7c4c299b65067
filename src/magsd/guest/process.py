"""Programs in a VM that somebody talks to while they run, with or without a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from magsd.guest.shim import ShimConnection
from magsd.guest.state import wait_status
from magsd.guest.transient import Stream
from magsd.guest.wire import Channel, pack_fields

_SIZE_MAX: Final = 65535
_MODES_MAX_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Terminal:
    """What kind of terminal a program gets."""

    term: str
    """The value of `TERM`; empty leaves the variable as the environment has it."""
    columns: int = 80
    rows: int = 24
    modes: bytes = b""
    """Its modes as SSH encodes them (RFC 4254, section 8); what is not known is left alone."""


class Process:
    """A program that runs. It ends with `aclose`, best by `async with`.

    Every method but `aclose` raises `ShimError` when the connection ends.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def read_any(self) -> tuple[Channel, bytes] | None:
        """Return what it has printed, at least a byte, and where; None when no more will come.

        With a terminal all of it is on channel out.
        """
        return await self._stream.read_any()

    async def write(self, data: bytes) -> None:
        """Send input, as fast as it is read; what nobody reads any more is dropped."""
        await self._stream.write(data)

    async def write_eof(self) -> None:
        """End its input; at a terminal, type the character for it. Idempotent."""
        await self._stream.write_eof()

    async def signal(self, number: int) -> None:
        """Send a signal to its process group; at a terminal, to the one in the foreground."""
        await self._stream.signal(number)

    async def resize(self, columns: int, rows: int) -> None:
        """Tell its terminal a new size; without a terminal nothing happens."""
        await self._stream.resize(_within(columns), _within(rows))

    async def wait(self) -> int:
        """Wait for its end; return its wait status, as `os.waitstatus_to_exitcode` takes it.

        It does not end while its output is not read. 127 and 126 are the exit codes of a
        program that could not be started, which its output explains.
        """
        return wait_status((await self._stream.exit()).value)

    async def aclose(self) -> None:
        """End it, unless it has ended: its process group is killed.

        At a terminal its session is hung up, as by a line that is cut, and killed 2 s later
        if it does not end. Idempotent.
        """
        await self._stream.aclose()


async def spawn(
    connection: ShimConnection,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: str = "/root",
    terminal: Terminal | None = None,
    login_name: str = "",
) -> Process:
    """Start a program with exactly `environment`, and `TERM` where it has a terminal.

    `argv[0]` is found in the environment's `PATH`; `login_name` is what it
    sees as its own name (`-bash` makes a login shell), if not empty. Raises
    `ShimError` when agent or shim refuse, `ValueError` for what cannot be asked for.
    """
    pairs = [("arg", argument) for argument in argv]
    variables = dict(environment)
    if terminal is not None and terminal.term:
        variables["TERM"] = terminal.term
    pairs += [("env", f"{name}={value}") for name, value in variables.items()]
    pairs.append(("cwd", cwd))
    if login_name:
        pairs.append(("name", login_name))
    if terminal is None:
        pairs.append(("stdin", "open"))
    else:
        pairs += _asked(terminal)
    return Process(await connection.open_stream(pack_fields("exec", pairs)))


def _asked(terminal: Terminal) -> list[tuple[str, str]]:
    return [
        ("stdin", "terminal"),
        ("columns", str(_within(terminal.columns))),
        ("rows", str(_within(terminal.rows))),
        ("modes", terminal.modes[:_MODES_MAX_BYTES].hex()),
    ]


def _within(size: int) -> int:
    """Return a size as a terminal takes it: clients send anything."""
    return min(max(size, 0), _SIZE_MAX)
