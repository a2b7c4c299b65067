"""Uploads: files that a caller hands in once, for any number of jobs. Their names, and limits."""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from magsd.model.errors import InvalidError
from magsd.model.names import AccountId, FileId

UPLOAD_MAX_BYTES: Final = 100 << 20
FILES_MAX: Final = 64
"""Of one job."""
NAME_MAX_BYTES: Final = 255
"""What a file system takes."""
_SUFFIX_MAX_BYTES: Final = 32
_UNNAMED: Final = "file"


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """An upload, as a job has it."""

    file_id: FileId
    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An upload, as its owner has it."""

    file: UploadedFile
    account_id: AccountId
    created_at: datetime

    @property
    def key(self) -> str:
        """Its name in the object store."""
        return f"files/{self.account_id}/{self.file.file_id}"


def safe_name(name: str) -> str:
    """Return the last element of a path as any system writes one, fit to name a file.

    What cannot be printed or encoded becomes `_`; what is too long loses its middle.
    """
    last = posixpath.basename(name.replace("\\", "/").rstrip("/"))
    plain = "".join(letter if letter.isprintable() else "_" for letter in last).strip()
    if plain in ("", ".", ".."):
        return _UNNAMED
    return _shortened(plain)


def _shortened(name: str) -> str:
    if len(name.encode()) <= NAME_MAX_BYTES:
        return name
    stem, suffix = posixpath.splitext(name)
    if len(suffix.encode()) > _SUFFIX_MAX_BYTES:
        stem, suffix = name, ""
    room = NAME_MAX_BYTES - len(suffix.encode())
    # A letter that was cut in two goes.
    return stem.encode()[:room].decode("utf-8", "ignore") + suffix


def check_together(files: Sequence[UploadedFile], disk_gb: int) -> None:
    """Raise `InvalidError` when a job cannot have these files beside each other."""
    counts = Counter(file.name for file in files)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InvalidError(
            f"file_ids: two of them are called {twice[0]!r}, and both would be /root/{twice[0]}: "
            "upload one of them under another name"
        )
    size_bytes = sum(file.size_bytes for file in files)
    if size_bytes > disk_gb << 30:
        raise InvalidError(
            f"file_ids: the files have {size_bytes} bytes together, and the disk {disk_gb} GiB: "
            "ask for a larger one with disk_gb"
        )
