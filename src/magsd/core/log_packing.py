"""A log as one object: a tar of the files of its directory, compressed with zstd.

Nothing but regular files with the names that a journal's directory has. Plain
tools read it: `zstd -d | tar -x`. That it is what was put away is known by the
hash in its row.
"""

import hashlib
import io
import os
import re
import tarfile
from pathlib import Path
from typing import Final, NamedTuple

import zstandard

UNPACKED_MAX: Final = 32 << 20
"""Bytes; a journal has 17 MiB at most."""

_NAME: Final = re.compile(r"(journal\.|state|record\.json)[A-Za-z0-9._-]{0,64}")
_LEVEL: Final = 3


class Packed(NamedTuple):
    """A log as it goes to the object store."""

    content: bytes
    sha256: str


def pack(directory: Path) -> Packed | None:
    """Return a log's files as one object; None when there is no such directory.

    Blocks. Raises `OSError`.
    """
    try:
        entries = [entry for entry in os.scandir(directory) if _is_kept(entry)]
    except FileNotFoundError:
        return None
    buffer = io.BytesIO()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with (
        compressor.stream_writer(buffer, closefd=False) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for entry in sorted(entries, key=lambda entry: entry.name):
            content = Path(entry.path).read_bytes()
            member = tarfile.TarInfo(entry.name)
            member.size, member.mode = len(content), 0o600
            member.mtime = int(entry.stat().st_mtime)
            tar.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    return Packed(content, hashlib.sha256(content).hexdigest())


def unpack(packed: Path, directory: Path) -> None:
    """Make `directory` of what `pack` returned. Blocks.

    Raises `OSError` and `ValueError`, which the hash of what was put away rules out.
    """
    directory.mkdir(mode=0o700)
    unpacked = 0
    with (
        packed.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            unpacked += member.size
            if content is None or not _NAME.fullmatch(member.name) or unpacked > UNPACKED_MAX:
                raise ValueError(f"{member.name[:64]!r} is not part of a log")
            with open(directory / member.name, "xb") as target:
                target.write(content.read())


def _is_kept(entry: "os.DirEntry[str]") -> bool:
    # A journal's segments are made before they are needed; one that is empty is as good as none.
    is_blank = entry.name.startswith("journal.") and not entry.stat(follow_symlinks=False).st_size
    return (
        not is_blank
        and entry.is_file(follow_symlinks=False)
        and _NAME.fullmatch(entry.name) is not None
    )
