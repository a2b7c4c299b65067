"""What a workspace is made of: layers by their content, and lists of them. Pure.

A layer never changes. A version of a workspace is a manifest, which names the
layers of the image that it began with and those that hold what was changed
since; a fork is a manifest that begins with those of another workspace.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

_FORM = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """One read-only layer: a squashfs file, found by its content."""

    sha256: str
    size_bytes: int
    """Of the file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a root filesystem is made of."""

    image: str
    """Name of the image that it began with, for people: its layers are what counts."""
    image_layers: tuple[Layer, ...]
    """Lowest first."""
    own_layers: tuple[Layer, ...] = ()
    """What was changed since, above the image's, lowest first."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, lowest first."""
        return self.image_layers + self.own_layers

    @property
    def size_bytes(self) -> int:
        """What the workspace itself takes: its own layers, not the image's."""
        return sum(layer.size_bytes for layer in self.own_layers)

    def with_layer(self, layer: Layer | None) -> "Manifest":
        """Return this with `layer` on top; the same when nothing was changed.

        Where it lies further down already, it does so no more: nothing of it is seen
        there that is not seen on top, and an overlay cannot have one layer twice.
        """
        if layer is None:
            return self
        others = (each for each in self.own_layers if each.sha256 != layer.sha256)
        return replace(self, own_layers=(*others, layer))

    def as_json(self) -> dict[str, Any]:
        """Return what a database keeps; see `from_json`."""
        return {
            "form": _FORM,
            "image": self.image,
            "image_layers": [_as_json(layer) for layer in self.image_layers],
            "own_layers": [_as_json(layer) for layer in self.own_layers],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Manifest":
        """Return the manifest in a record. Raises `ValueError` for what is none."""
        if record.get("form") != _FORM:
            raise ValueError(f"this manifest has form {record.get('form')}, not {_FORM}")
        return cls(
            image=record["image"],
            image_layers=tuple(_layers(record["image_layers"])),
            own_layers=tuple(_layers(record["own_layers"])),
        )


def _as_json(layer: Layer) -> dict[str, Any]:
    return {"sha256": layer.sha256, "size_bytes": layer.size_bytes}


def _layers(records: list[dict[str, Any]]) -> Iterator[Layer]:
    for record in records:
        yield Layer(record["sha256"], record["size_bytes"])
