"""What a descriptor of the built-in shell leads to."""

from typing import Final, Protocol

from magsd.engine.fake.machine import Machine
from magsd.engine.fake.program import Program
from magsd.guest.wire import Channel

WORD_MAX: Final = 256 << 10
"""Bytes that a word, a variable or a substitution may have."""


class ShellError(Exception):
    """The script cannot go on; the text says why."""


class Sink(Protocol):
    """What a descriptor is written to."""

    async def write(self, data: bytes) -> None:
        """Return when it was taken. Raises `OSError`."""


class StreamSink:
    """The program's own output."""

    def __init__(self, program: Program, channel: Channel) -> None:
        self._program = program
        self._channel = channel

    async def write(self, data: bytes) -> None:
        """See `Sink`."""
        await self._program.machine.moving()
        await self._program.output.write(self._channel, data)


class FileSink:
    """A file in the VM."""

    def __init__(self, machine: Machine, path: str) -> None:
        self._machine = machine
        self._path = path

    async def write(self, data: bytes) -> None:
        """See `Sink`."""
        await self._machine.moving()
        self._machine.write(self._path, data, is_appended=True)


class Nowhere:
    """`/dev/null`."""

    async def write(self, data: bytes) -> None:
        """See `Sink`."""


class Captured:
    """What `$(…)` prints."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        """See `Sink`. Raises `ShellError` when it is too much."""
        if len(self.data) + len(data) > WORD_MAX:
            raise ShellError(f"$(…) printed more than {WORD_MAX} bytes")
        self.data += data
