"""Images that VMs start from: a name, and read-only layers found by their content.

Owns `images/<name>.json` and `layers/<sha256>.sqfs` of a data directory, and
says whether what lies there is still what was put there. Making an image is
`build`'s part, mounting its layers the engine's.

A layer file never changes. To replace one, a new file takes its name, so that
whoever has the old one mounted keeps it.
"""

import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from magsd.aio import SingleFlight
from magsd.model.errors import InvalidError, JobCode, LaunchError, NotFoundError

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SQUASHFS_MAGIC: Final = b"hsqs"


@dataclass(frozen=True)
class Image:
    """What a VM's root filesystem starts from."""

    name: str
    layers: tuple[Path, ...]
    """Squashfs files, lowest first; each is named after the SHA-256 of its content."""
    digest: str
    """Names the content of all layers together."""
    built_at: datetime
    size_bytes: int
    """Of all layers, as they lie on the disk."""
    metadata: Mapping[str, Any]
    """What the maker of the image said about it: release, architecture, recipe, …"""


@dataclass(frozen=True)
class _Fingerprint:
    """What changes when somebody writes to a file or puts another in its place."""

    size_bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "_Fingerprint":
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


class ImageStore:
    """The images of one data directory."""

    def __init__(self, data_directory: Path) -> None:
        self._images = data_directory / "images"
        self._layers = data_directory / "layers"
        self._intact: dict[Path, _Fingerprint] = {}
        self._known: dict[str, tuple[_Fingerprint, Image]] = {}
        self._checks = SingleFlight()

    def names(self) -> list[str]:
        """Return the names of all images, sorted."""
        return sorted(path.stem for path in self._images.glob("*.json"))

    def get(self, name: str) -> Image:
        """Return an image. Raises `NotFoundError` that lists the known ones."""
        path = self._images / f"{name}.json"
        try:
            if _NAME.fullmatch(name) is None:
                raise FileNotFoundError(name)
            # Asked for at every submit; read again only when it is another file.
            seen = _Fingerprint.of(path)
            read = self._known.get(name)
            if read is None or read[0] != seen:
                read = self._known[name] = (seen, self._from_record(name, read_json(path)))
            return read[1]
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none yet: run `magsd image build standard`"
            raise NotFoundError(f"there is no image {name!r} (known: {known})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(name, f"{path} cannot be read: {error!r}") from error

    def add(self, name: str, squashfs: Path, metadata: Mapping[str, Any]) -> Image:
        """Make `squashfs` the only layer of image `name`, replacing an image of that name.

        The file is linked into the store where the filesystem allows it,
        else copied. The image is there, durably, when this returns.
        """
        if _NAME.fullmatch(name) is None:
            raise InvalidError(
                f"{name!r} cannot name an image: use 1 to 63 of a-z 0-9 . _ - "
                "beginning with a letter or digit"
            )
        with squashfs.open("rb") as file:
            if file.read(4) != _SQUASHFS_MAGIC:
                raise InvalidError(f"{squashfs} is not a squashfs image")
        digest = file_sha256(squashfs)
        self._put_layer(squashfs, digest)
        record = {
            "name": name,
            "layers": [{"sha256": digest, "size_bytes": squashfs.stat().st_size}],
            "built_at": metadata.get("built_at") or datetime.now(UTC).isoformat(),
            "metadata": dict(metadata),
        }
        write_json(self._images / f"{name}.json", record)
        return self._from_record(name, record)

    async def verify(self, name: str, layers: Iterable[Path]) -> None:
        """Return when the layers of an image are what they were when it was added.

        Reads a layer in full at its first use by this process and whenever
        its size, time or inode is another than then; otherwise only looks at
        those. Raises `LaunchError` (`image_damaged`) that names the next step.
        """
        for layer in layers:
            try:
                if self._intact.get(layer) == _Fingerprint.of(layer):
                    continue
                await self._checks.do(layer, partial(asyncio.to_thread, self._read, layer))
            except (OSError, ValueError) as error:
                raise _damaged(name, str(error)) from error

    def _read(self, layer: Path) -> None:
        before = _Fingerprint.of(layer)
        if (found := file_sha256(layer)) != layer.stem:
            raise ValueError(f"{layer} has SHA-256 {found}")
        self._intact[layer] = before

    def _from_record(self, name: str, record: dict[str, Any]) -> Image:
        digests = [layer["sha256"] for layer in record["layers"]]
        return Image(
            name=name,
            layers=tuple(self._layers / f"{digest}.sqfs" for digest in digests),
            digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
            built_at=datetime.fromisoformat(record["built_at"]),
            size_bytes=sum(layer["size_bytes"] for layer in record["layers"]),
            metadata=record["metadata"],
        )

    def _put_layer(self, squashfs: Path, digest: str) -> None:
        self._layers.mkdir(parents=True, exist_ok=True)
        target = self._layers / f"{digest}.sqfs"
        if target.exists() and file_sha256(target) == digest:
            return
        temporary = self._layers / f".{digest}.{secrets.token_hex(4)}"
        try:
            try:
                os.link(squashfs, temporary)
            except OSError:
                shutil.copyfile(squashfs, temporary)
                temporary.chmod(0o444)
            sync_file(temporary)
            temporary.replace(target)
            sync_directory(self._layers)
        finally:
            temporary.unlink(missing_ok=True)


def _damaged(name: str, detail: str) -> LaunchError:
    step = (
        "run `magsd image build standard --force`"
        if name == "standard"
        else "add it to the data directory again"
    )
    return LaunchError(f"image {name!r} is damaged: {step}", detail, JobCode.IMAGE_DAMAGED)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `ValueError` when there is none."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no JSON object")
    return record


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Put a JSON file in place, whole and durable or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        sync_file(temporary)
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Return when a file's content is on the disk."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
