"""An OCI image in one archive: its documents, and where everything stands. Pure.

Form: the OCI image layout, in a tar (`oci-archive`).
"""

import hashlib
import io
import json
import platform
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from magsd.storage.layer_export import Blob

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""What OCI calls a machine, by what Linux calls it."""
BLOBS: Final = "blobs/sha256"
LAYOUT: Final = "oci-layout"
INDEX: Final = "index.json"
_MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_NAME: Final = "org.opencontainers.image.ref.name"
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BLOCK_BYTES: Final = 512
END: Final = bytes(2 * _BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Layout:
    """The small files of an image in their order; its layers, in `BLOBS`, come behind them."""

    documents: Sequence[tuple[str, bytes]]


def architecture() -> str:
    """Return what OCI calls this machine."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def layout(layers: Sequence[Blob], name: str, tag: str, made_at: datetime) -> Layout:
    """Return the image of `layers`, lowest first, called `name` as far as it may be."""
    config = _encoded(
        {
            "created": made_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "architecture": architecture(),
            "os": "linux",
            "config": {"Env": [_PATH], "Cmd": ["/bin/sh"], "WorkingDir": "/root"},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{layer.content_sha256}" for layer in layers],
            },
        }
    )
    manifest = _encoded(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": _descriptor(_CONFIG_TYPE, config),
            "layers": [
                {
                    "mediaType": _LAYER_TYPE,
                    "digest": f"sha256:{layer.sha256}",
                    "size": layer.size_bytes,
                }
                for layer in layers
            ],
        }
    )
    described = _descriptor(_MANIFEST_TYPE, manifest)
    described["annotations"] = {_NAME: reference(name, tag)}
    described["platform"] = {"architecture": architecture(), "os": "linux"}
    index = _encoded({"schemaVersion": 2, "manifests": [described]})
    return Layout(
        [
            (LAYOUT, _encoded({"imageLayoutVersion": "1.0.0"})),
            (INDEX, index),
            *((f"{BLOBS}/{_sha256(each)}", each) for each in (manifest, config)),
        ]
    )


def reference(name: str, tag: str) -> str:
    """Return a name for an image: of small letters, as a name of images must be."""
    return f"localhost/{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}:{tag}"


def member(name: str, size_bytes: int, made_at: datetime) -> bytes:
    """Return what stands in the archive in front of a file."""
    found = tarfile.TarInfo(name)
    found.size, found.mtime = size_bytes, int(made_at.timestamp())
    return found.tobuf(tarfile.GNU_FORMAT)


def padding(size_bytes: int) -> bytes:
    """Return what stands behind a file."""
    return bytes(-size_bytes % _BLOCK_BYTES)


def archive_bytes(found: Layout, layers: Sequence[Blob]) -> int:
    """Return how large the archive becomes."""
    sizes = [len(content) for _, content in found.documents]
    sizes += [layer.size_bytes for layer in layers]
    return sum(_BLOCK_BYTES + size + len(padding(size)) for size in sizes) + len(END)


def documents(found: Layout, made_at: datetime) -> bytes:
    """Return the beginning of the archive, up to the layers."""
    sink = io.BytesIO()
    for name, content in found.documents:
        sink.write(member(name, len(content), made_at) + content + padding(len(content)))
    return sink.getvalue()


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{_sha256(content)}", "size": len(content)}


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
