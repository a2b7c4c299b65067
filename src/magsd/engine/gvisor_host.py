"""What the host must have for gVisor, looked at once, when the engine is prepared.

Owns the version of runsc that is good enough and the place of the agent's
program. Used by `gvisor`.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Final

from magsd.engine import process
from magsd.engine.gvisor_spec import AGENT_NAME
from magsd.engine.process import ProcessError
from magsd.model.errors import LaunchError

OLDEST_RUNSC: Final = 20240729
"""Older ones cannot run today's userland: `ls` fails in them."""
_INSTALL: Final = (
    "install runsc 20240729 or newer: on Debian 12 add bookworm-backports and "
    "`apt-get install -t bookworm-backports runsc`, elsewhere see gvisor.dev"
)
_VERSION_S: Final = 10.0


async def find_runsc(wanted: Path | None) -> tuple[Path, str]:
    """Return runsc and its version. `wanted` None: the one in PATH.

    Raises `LaunchError` when there is none, or one that is too old.
    """
    found = wanted or shutil.which("runsc")
    if found is None:
        raise LaunchError(f"gVisor is not installed: {_INSTALL}")
    try:
        told = await process.run([found, "--version"], timeout_s=_VERSION_S)
    except ProcessError as error:
        raise LaunchError(f"{error.message}: {_INSTALL}", error.detail) from error
    version = told.text.partition("\n")[0].removeprefix("runsc version ")
    date = re.search(r"\d{8}", version)
    if date is None or int(date.group()) < OLDEST_RUNSC:
        raise LaunchError(f"runsc {version} is too old: {_INSTALL}", str(found))
    return Path(found), version


def install_agent(program: Path, guest: Path) -> Path:
    """Return a folder that holds the agent's program and nothing else.

    Named by content: VMs of an earlier version go on with theirs.
    """
    try:
        content = program.read_bytes()
    except FileNotFoundError as error:
        raise LaunchError("mags-agent is missing: run `make setup`", str(error)) from error
    folder = guest / hashlib.sha256(content).hexdigest()
    target = folder / AGENT_NAME
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = guest / f".{AGENT_NAME}.{os.getpid()}"
        aside.write_bytes(content)
        aside.chmod(0o555)
        aside.replace(target)
    return folder
