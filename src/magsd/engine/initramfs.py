"""The first root filesystem of a microVM: the agent as `/init`, and the modules it loads.

Owns the archive's content and format, `newc` as in the kernel's
`Documentation/driver-api/early-userspace/buffer-format.rst`; what the agent
does with it is the agent's. Nothing in it depends on the time or the machine:
the same files give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from magsd.engine.places import AGENT_PLACES
from magsd.model.errors import LaunchError

_DIRECTORY: Final = 0o040000
_REGULAR: Final = 0o100000
_CHARACTER_DEVICE: Final = 0o020000
_FOLDERS: Final = ("dev", "disk", "layers", "modules", "proc", "root", "sys")
_PLACES: Final = ("places", *(f"places/{place}" for place in AGENT_PLACES))
_CONSOLE: Final = (5, 1)
_TRAILER: Final = "TRAILER!!!"


def build(agent: Path, modules: Sequence[Path]) -> bytes:
    """Return an uncompressed archive; a few megabytes.

    It holds `agent` as `/init`, each of `modules` in `/modules`, their file
    names in `/modules/order` (a line each, in the order given), the console's
    node, empty folders to mount on, and those of a guest's root in `/places`. Raises `LaunchError` when a file
    cannot be read.
    """
    archive = _Archive()
    for folder in (*_FOLDERS, *_PLACES):
        archive.add(folder, _DIRECTORY | 0o755)
    archive.add("dev/console", _CHARACTER_DEVICE | 0o600, device=_CONSOLE)
    archive.add("init", _REGULAR | 0o755, _content(agent))
    for module in modules:
        archive.add(f"modules/{module.name}", _REGULAR | 0o644, _content(module))
    order = "".join(f"{module.name}\n" for module in modules)
    archive.add("modules/order", _REGULAR | 0o644, order.encode())
    return archive.finish()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        text = f"{path.name}, which every microVM starts with, cannot be read: run `make setup`"
        raise LaunchError(text, str(error)) from error


class _Archive:
    """A `newc` archive that grows. All entries belong to root and have no time."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._entries = 0

    def add(
        self, name: str, mode: int, content: bytes = b"", *, device: tuple[int, int] = (0, 0)
    ) -> None:
        """Append an entry; folders come before what lies in them."""
        self._entries += 1
        links = 2 if mode & _DIRECTORY else 1
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device it lies on (2), node's own (2)
        fields = (self._entries, mode, 0, 0, links, 0, len(content), 0, 0, *device)
        header = "070701" + "".join(f"{field:08x}" for field in (*fields, len(encoded), 0))
        self._append(header.encode() + encoded)
        self._append(content)

    def finish(self) -> bytes:
        """Return the archive with its end mark."""
        self.add(_TRAILER, 0)
        return bytes(self._bytes)

    def _append(self, part: bytes) -> None:
        self._bytes += part + bytes(-len(part) % 4)
