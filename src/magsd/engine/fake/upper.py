"""What a pretended VM has written, as files: there is nothing else that it can change."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Final

NAME: Final = "changes"
"""In the run directory of a VM that has ended."""
_MOUNTED: Final = ("/dev", "/proc", "/run/mags", "/sys", "/uploads")
_NO_NAME: Final = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Make a directory that holds `files`, by their paths. Raises `OSError`.

    What no real file could be called is left out, as is what lies where a VM has
    something mounted.
    """
    directory.mkdir(mode=0o755, exist_ok=True)
    for path, content in sorted(files.items()):
        if any(path == place or path.startswith(f"{place}/") for place in _MOUNTED):
            continue
        target = directory / path.lstrip("/")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except ValueError:
            continue
        except OSError as error:
            if error.errno not in _NO_NAME:
                raise


def read(directory: Path) -> dict[str, bytes]:
    """Return the files of such a directory by their paths. Raises `OSError`."""
    return {
        f"/{path.relative_to(directory)}": path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
