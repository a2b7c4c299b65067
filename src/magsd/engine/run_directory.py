"""A VM's run directory, as a launch and a stop leave it.

The directory belongs to whoever asked for the VM, and so does a journal that
was there before; everything else in it is the engine's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

_log: Final = structlog.get_logger()


def make(directory: Path, *also_kept: str) -> Callable[[], None]:
    """Make it if need be; return what leaves it as it was before, `also_kept` as it is then."""
    was_there = directory.is_dir()
    directory.mkdir(mode=0o700, exist_ok=True)
    kept = {*also_kept, *(path.name for path in directory.glob("journal.*"))}

    def clean() -> None:
        for path in list(directory.iterdir()):
            if path.name in kept:
                continue
            if path.is_dir():
                remove(path)
            else:
                path.unlink()
        if not was_there:
            remove(directory)

    return clean


def remove(directory: Path) -> None:
    """Remove an empty directory; one that is not stays, and the log says so. Idempotent."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("a folder stays", folder=str(directory), error=str(error))
