"""What the host must have for QEMU, looked at once, when the engine is prepared."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from magsd.engine import process
from magsd.engine.process import ProcessError
from magsd.engine.qemu_machine import Machine
from magsd.model.errors import LaunchError

OLDEST: Final = (7, 2)
"""The oldest that was tried."""
_VERSION_S: Final = 10.0


@dataclass(frozen=True)
class Emulator:
    """A QEMU that is good enough."""

    path: Path
    version: str
    """`7.2.22`."""
    build: str
    """The version with what a distribution says of its package: `7.2.22 (Debian 1:7.2+…)`."""


async def find_qemu(machine: Machine) -> Emulator:
    """Return the emulator. Raises `LaunchError` when there is none, or one too old."""
    path = Path("/usr/bin", machine.program)
    install = f"`apt-get install {machine.package}`"
    if not path.is_file():
        raise LaunchError(f"QEMU is not installed: {install}", str(path))
    try:
        told = await process.run([str(path), "--version"], timeout_s=_VERSION_S)
    except ProcessError as error:
        raise LaunchError(f"{error.message}: {install}", error.detail) from error
    found = re.search(r"version (\d+)\.(\d+)(\.\d+)?", told.text)
    if found is None:
        raise LaunchError(f"QEMU does not say its version: {install}", told.text[:200])
    version = found.group().removeprefix("version ")
    if (int(found[1]), int(found[2])) < OLDEST:
        raise LaunchError(f"QEMU {version} is too old, 7.2 is needed: {install}", str(path))
    build = told.text.partition("\n")[0].partition("version ")[2]
    return Emulator(path, version, build)
