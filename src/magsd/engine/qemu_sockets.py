"""The socket of an emulator's monitor, in the VM's run directory."""

import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

NAME: Final = "qmp"


def listening(run_directory: Path, held: AsyncExitStack) -> int:
    """Return a socket on which the emulator's monitor is to listen; `held` closes it."""
    made = socket.socket(socket.AF_UNIX)
    held.callback(made.close)
    in_directory(run_directory, made.bind)
    (run_directory / NAME).chmod(0o600)
    made.listen(1)
    return made.fileno()


def in_directory(run_directory: Path, act: Callable[[str], None]) -> None:
    """Bind or connect to the monitor's socket: its own path may be too long for one."""
    here = os.open(run_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        act(f"/proc/self/fd/{here}/{NAME}")
    finally:
        os.close(here)
