"""Archives that hold an image: which layers it has, and where they lie. Nobody vouches for them.

Knows two forms: the OCI image layout in a tar, and what `docker save` makes.
Any other archive is a root filesystem itself. Standard library only, but for
one layer's compression.
"""

import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol

from typing_extensions import override

from magsd.storage import oci_layout
from magsd.storage.tar_entries import TarReader
from magsd.storage.tar_rules import Kind, TarLimits, TarRefusedError, shown

_MANIFEST: Final = "manifest.json"
_DOCUMENT_BYTES: Final = 4 << 20
_LAYERS_MAX: Final = 128
_MEMBERS_MAX: Final = 4096
_NESTED_MAX: Final = 3
_IMAGES_MAX: Final = 64
_WINDOW_BYTES: Final = 128 << 20
_BUFFER_BYTES: Final = 1 << 18
_MAGIC_BYTES: Final = 8
_DIGEST: Final = re.compile("sha256:([0-9a-f]{64})")
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}


class Hash(Protocol):
    """What `hashlib` makes."""

    def update(self, content: bytes, /) -> None:
        """Take in more."""

    def hexdigest(self) -> str:
        """Return what came of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file inside an archive: where its content is, and what it must come to."""

    name: str
    offset: int
    size_bytes: int
    sha256: str = ""
    """Of the bytes there; empty: not known."""
    content_sha256: str = ""
    """Of what they are when they are not compressed; empty: not known."""


def find_layers(file: int, size_bytes: int, limits: TarLimits) -> list[Part] | None:
    """Return the layers, lowest first, of the image in an archive; None when it holds none.

    Raises `TarRefusedError` for an image that is damaged, or not one alone, or
    not for this machine.
    """
    members = _members(file, size_bytes, limits)
    if oci_layout.LAYOUT in members and oci_layout.INDEX in members:
        return _checked(_of_layout(file, members))
    images = _docker_images(file, members.get(_MANIFEST))
    return None if images is None else _checked(_of_docker(file, members, images))


def _members(file: int, size_bytes: int, limits: TarLimits) -> Mapping[str, Part]:
    """Return the files of an archive by their names, as far as it may be one of an image."""
    stream = io.BufferedReader(PartReader(file, Part("", 0, size_bytes)), _BUFFER_BYTES)
    found: dict[str, Part] = {}
    links: dict[str, str] = {}
    for entry in TarReader(stream, limits):
        name = os.path.normpath(entry.path.decode("utf-8", "surrogateescape"))
        is_like_one = entry.kind in (Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK)
        if not is_like_one or name.count("/") > 2 or len(found) > _MEMBERS_MAX:
            return {}
        if entry.kind is Kind.REGULAR and entry.extents is None:
            found[name] = Part(name, stream.tell(), entry.content_bytes)
        elif entry.kind is Kind.SYMLINK:
            target = entry.target.decode("utf-8", "surrogateescape")
            links[name] = os.path.normpath(os.path.join(os.path.dirname(name), target))
    for name, target in links.items():
        # `docker save` of old names a layer that is there twice so.
        if name not in found and target in found:
            found[name] = found[target]
    return found


def _of_layout(file: int, members: Mapping[str, Part]) -> list[Part]:
    index = _document(file, members[oci_layout.INDEX])
    images = list(_images(file, members, index, _NESTED_MAX))
    if len(images) != 1:
        problem = "no image" if not images else f"{len(images)} images"
        raise TarRefusedError(
            f"the archive holds {problem} for linux/{oci_layout.architecture()}: save one alone"
        )
    manifest = images[0]
    config = _document(file, _blob(members, manifest.get("config")))
    _check_machine(config)
    layers = [_blob(members, each) for each in _list(manifest.get("layers"))]
    return _with_content(layers, config)


def _images(
    file: int, members: Mapping[str, Part], index: Mapping[str, Any], depth: int
) -> Iterator[dict[str, Any]]:
    """Yield the manifests of the images for this machine."""
    for number, each in enumerate(_list(index.get("manifests"))):
        if depth == 0 or number >= _IMAGES_MAX:
            raise TarRefusedError("the archive has a list of images that cannot be")
        if not isinstance(each, dict) or not _may_be_ours(each):
            continue
        document = _document(file, _blob(members, each))
        if "manifests" in document:
            yield from _images(file, members, document, depth - 1)
        else:
            yield document


def _may_be_ours(descriptor: Mapping[str, Any]) -> bool:
    platform = descriptor.get("platform")
    if not isinstance(platform, dict):
        return True
    found = platform.get("os"), platform.get("architecture")
    return found == ("linux", oci_layout.architecture())


def _docker_images(file: int, part: Part | None) -> list[dict[str, Any]] | None:
    """Return what `docker save` says of the images in an archive; None for another's file."""
    if part is None or part.size_bytes > _DOCUMENT_BYTES:
        return None
    try:
        document = json.loads(_read(file, part))
    except (ValueError, RecursionError):
        return None
    are_images = isinstance(document, list) and all(
        isinstance(each, dict) and "Layers" in each for each in document
    )
    return document if are_images else None


def _of_docker(file: int, members: Mapping[str, Part], images: list[dict[str, Any]]) -> list[Part]:
    if len(images) != 1:
        raise TarRefusedError(f"the archive holds {len(images)} images: save one alone")
    config = _document(file, _named(members, images[0].get("Config")))
    _check_machine(config)
    layers = [_named(members, name) for name in _list(images[0]["Layers"])]
    return _with_content(layers, config)


def _with_content(layers: list[Part], config: Mapping[str, Any]) -> list[Part]:
    """Return layers with the content that the image's own description gives them."""
    described = config.get("rootfs")
    wanted = _list(described.get("diff_ids")) if isinstance(described, dict) else []
    if len(wanted) != len(layers):
        raise TarRefusedError("the image has another number of layers than it says")
    return [
        Part(each.name, each.offset, each.size_bytes, each.sha256, _sha256(content))
        for each, content in zip(layers, wanted, strict=True)
    ]


def _checked(layers: list[Part]) -> list[Part]:
    if len(layers) > _LAYERS_MAX:
        raise TarRefusedError(f"the image has more than {_LAYERS_MAX} layers", is_too_large=True)
    return layers


def _check_machine(config: Mapping[str, Any]) -> None:
    found = f"{config.get('os', 'linux')}/{config.get('architecture')}"
    wanted = f"linux/{oci_layout.architecture()}"
    if found != wanted:
        raise TarRefusedError(f"the image is for {_quoted(found)}, and this machine is {wanted}")


def _blob(members: Mapping[str, Part], descriptor: Any) -> Part:
    if not isinstance(descriptor, dict):
        raise TarRefusedError("the image is described in a form that cannot be")
    sha256 = _sha256(descriptor.get("digest"))
    found = _named(members, f"{oci_layout.BLOBS}/{sha256}")
    return Part(found.name, found.offset, found.size_bytes, sha256)


def _named(members: Mapping[str, Part], name: Any) -> Part:
    if not isinstance(name, str) or (found := members.get(os.path.normpath(name))) is None:
        raise TarRefusedError(f"the archive lacks {_quoted(name)}, which its image names")
    return found


def _sha256(digest: Any) -> str:
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise TarRefusedError(f"the image names content by {_quoted(digest)}, and not by sha256")
    return found[1]


def _list(found: Any) -> Sequence[Any]:
    if not isinstance(found, list):
        raise TarRefusedError("the image is described in a form that cannot be")
    return found


def _quoted(name: Any) -> str:
    return shown(str(name).encode("utf-8", "surrogateescape"))


def _document(file: int, part: Part) -> dict[str, Any]:
    try:
        document = json.loads(_read(file, part))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise TarRefusedError(f"{_quoted(part.name)} of the archive is no JSON object")
    return document


def _read(file: int, part: Part) -> bytes:
    if part.size_bytes > _DOCUMENT_BYTES:
        raise TarRefusedError(f"{_quoted(part.name)} of the archive is too large", True)
    content = os.pread(file, part.size_bytes, part.offset)
    if part.sha256 and hashlib.sha256(content).hexdigest() != part.sha256:
        raise TarRefusedError(f"{_quoted(part.name)} of the archive is damaged")
    return content


class PartReader(io.RawIOBase):
    """The bytes of a part of a file, and what they come to."""

    def __init__(self, file: int, part: Part) -> None:
        super().__init__()
        self._file, self._at = file, part.offset
        self._end = part.offset + part.size_bytes
        self.hash: Hash = hashlib.sha256()

    @override
    def readable(self) -> bool:
        """Return true."""
        return True

    @override
    def tell(self) -> int:
        """Return the place in the file that is read next."""
        return self._at

    @override
    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there is something."""
        content = os.pread(self._file, min(len(buffer), self._end - self._at), self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        self.hash.update(content)
        return len(content)


class InflatedReader(io.RawIOBase):
    """What a stream is without its compression, if it has one, and what that comes to.

    Raises `TarRefusedError` for compression that is damaged or cannot be read.
    """

    def __init__(self, stream: "io.BufferedReader[Any]") -> None:
        super().__init__()
        kind = compression(stream.peek(_MAGIC_BYTES)[:_MAGIC_BYTES])
        self._stream: IO[bytes] | gzip.GzipFile = stream
        self._errors: tuple[type[Exception], ...] = ()
        self.hash: Hash = hashlib.sha256()
        if kind == "gzip":
            self._stream = gzip.GzipFile(fileobj=stream)
            self._errors = (gzip.BadGzipFile, EOFError, zlib.error)
        elif kind == "zstd":
            import zstandard

            plain = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
            self._stream = plain.stream_reader(stream, read_across_frames=True, closefd=False)
            self._errors = (zstandard.ZstdError,)

    @override
    def readable(self) -> bool:
        """Return true."""
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as one read goes."""
        try:
            content = self._stream.read(len(buffer))
        except self._errors as error:
            raise TarRefusedError(f"the archive's compression is damaged: {error}") from error
        buffer[: len(content)] = content
        self.hash.update(content)
        return len(content)


def compression(beginning: bytes) -> str | None:
    """Return what a stream is compressed with that begins so: `gzip`, `zstd` or None.

    Raises `TarRefusedError` for what cannot be read.
    """
    for magic, name in _OTHERS.items():
        if beginning.startswith(magic):
            raise TarRefusedError(f"the archive is compressed with {name}: use gzip or zstd")
    if beginning.startswith(_GZIP):
        return "gzip"
    return "zstd" if beginning.startswith(_ZSTD) else None


def is_compressed(stream: "io.BufferedReader[Any]") -> bool:
    """Say whether a stream, from its beginning, is compressed. Raises `TarRefusedError`."""
    return compression(stream.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]) is not None
