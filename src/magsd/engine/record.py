"""`record.json` of a run directory: what a later daemon needs to find a VM again.

Written before the VM's engine starts, so that whatever is running has one.
Also what names one boot of this host. Knows no engine.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from magsd.model.names import VmId

_NAME: Final = "record.json"


@dataclass(frozen=True)
class VmRecord:
    """One VM on one boot of one host."""

    vm: VmId
    epoch: int
    boot_id: str
    """Of the host; pids mean nothing after another boot."""
    shim_pid: int
    shim_start_time: int
    """In clock ticks since boot."""
    engine: str
    engine_version: str
    image: str
    layers: tuple[str, ...]
    """File names, lowest first."""
    memory_mb: int
    """What the guest may use."""
    slot: int
    """The network slot; 0: none."""
    uid: int
    """The shim's, and so this VM's share of the instance's uids."""
    is_stopped: bool = False
    """The daemon killed the shim: its death is no loss."""
    facts: Mapping[str, Any] | None = None
    """What its memory, saved, would depend on; None where it cannot be."""

    def write(self, run_directory: Path) -> None:
        """Put it in place, whole: whatever becomes of the daemon. Raises `OSError`.

        Quick; `sync_record` makes it outlast the host as well.
        """
        temporary = run_directory / f".{_NAME}"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        temporary.replace(run_directory / _NAME)

    @classmethod
    def remove(cls, run_directory: Path) -> None:
        """Remove the record of a run directory. Idempotent."""
        (run_directory / _NAME).unlink(missing_ok=True)

    @classmethod
    def read(cls, run_directory: Path) -> Self | None:
        """Return the record of a run directory; None when it has none, or what is none.

        Raises `OSError` for one that cannot be read now: its VM may live.
        """
        try:
            content = json.loads((run_directory / _NAME).read_text(encoding="utf-8"))
            known = {field.name: content[field.name] for field in fields(cls)[:-1]}
            known["facts"] = content.get("facts")  # Older daemons wrote none.
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        known["layers"] = tuple(known["layers"])
        return cls(**known)


def sync_record(run_directory: Path) -> None:
    """Return when the record of a run directory is on the disk (20 ms beside other writes)."""
    for path, flags in ((run_directory / _NAME, 0), (run_directory, os.O_DIRECTORY)):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@cache
def boot_id() -> str:
    """Return what names this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
