"""Images for an engine whose VMs start from none: the standard one is there by name alone."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from typing_extensions import override

from magsd.model.errors import NotFoundError
from magsd.storage.images import Image, ImageStore

_NEVER = datetime.fromtimestamp(0, UTC)


class UnneededImages(ImageStore):
    """The images of a data directory, and one without content in the standard one's place."""

    def __init__(self, data_directory: Path, standard: str) -> None:
        super().__init__(data_directory)
        self._standard = standard

    @override
    def names(self) -> list[str]:
        """Return the names of all images, sorted."""
        return sorted({*super().names(), self._standard})

    @override
    def get(self, name: str) -> Image:
        """Return an image. Raises `NotFoundError` that lists the known ones."""
        try:
            return super().get(name)
        except NotFoundError:
            if name != self._standard:
                raise
        return Image(name, (), digest="", built_at=_NEVER, size_bytes=0, metadata={})

    @override
    async def verify(self, name: str, layers: Iterable[Path]) -> None:
        """Do nothing: what nobody mounts may be damaged."""
