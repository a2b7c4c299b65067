"""Reading the file `state` of a run directory: how a VM and its durable streams ended.

The shim writes it; what it says holds also when the shim is gone. The layout
is that of `docs/reference/wire.md`.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

_NAME: Final = "state"
_MAGIC: Final = b"MAGSSTA1"
_HEADER: Final = struct.Struct("<8sIIQ2048s")
_ENTRIES_AT: Final = 4096
_ENTRY_BYTES: Final = 64
_ENTRY: Final = struct.Struct("<IIIIQQQQ")
_OVER: Final = 2
_WAIT_STATUS_MASK: Final = 0xFFFF


class EndCode(IntEnum):
    """Why the shim ended its VM; NONE while it lives, or when the shim itself was lost."""

    NONE = 0
    KILLED = 1
    OUT_OF_MEMORY = 2
    TOO_MANY_PROCESSES = 3
    ENGINE_DIED = 4
    AGENT_DIED = 5
    FENCED = 6
    HOST_DISK_FULL = 7


@dataclass(frozen=True, slots=True)
class StreamState:
    """What is known of one durable stream. Before it is over only the first two fields count."""

    stream: int
    is_over: bool
    wait_status: int = 0
    """As `os.waitstatus_to_exitcode` and its kin take it."""
    has_timed_out: bool = False
    opened_ns: int = 0
    """Wall clock; 0 where it is not told (frames do not carry it)."""
    ended_ns: int = 0
    out_bytes: int = 0
    """Printed to stdout, kept in the journal or not."""
    err_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VmState:
    """How a VM ended, if it did."""

    end: EndCode
    engine_status: int
    """Exit status of the engine's process."""
    ended_ns: int
    """Wall clock."""
    detail: str
    """For the log; holds what the engine printed last."""


def read_state(directory: Path) -> VmState | None:
    """Return how the VM of a run directory ended; None when the file is not there or is none."""
    data = _read(directory, 0, _HEADER.size)
    if data is None:
        return None
    _, end, engine_status, ended_ns, detail = _HEADER.unpack(data)
    try:
        code = EndCode(end)
    except ValueError:
        return None
    text = detail.split(b"\0", 1)[0].decode("utf-8", "replace")
    return VmState(code, engine_status, ended_ns, text)


def read_stream(directory: Path, stream: int) -> StreamState | None:
    """Return what became of durable stream `stream`; None when it was never opened."""
    data = _read(directory, _ENTRIES_AT + _ENTRY_BYTES * stream, _ENTRY.size)
    if data is None:
        return None
    state, status, timed_out, _, opened, ended, out_bytes, err_bytes = _ENTRY.unpack(data)
    if state == 0:
        return None
    return StreamState(
        stream=stream,
        is_over=state == _OVER,
        wait_status=wait_status(status),
        has_timed_out=timed_out != 0,
        opened_ns=opened,
        ended_ns=ended,
        out_bytes=out_bytes,
        err_bytes=err_bytes,
    )


def wait_status(value: int) -> int:
    """Return the wait status in `value`, which came from a guest and may be anything."""
    return value & _WAIT_STATUS_MASK


def _read(directory: Path, offset: int, length: int) -> bytes | None:
    """Return `length` bytes of the file, if it is a state file and has them."""
    try:
        with open(directory / _NAME, "rb", buffering=0) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            file.seek(offset)
            data = file.read(length)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data if len(data) == length else None
