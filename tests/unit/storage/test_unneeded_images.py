"""Images for an engine that starts from none."""

from pathlib import Path

import pytest

from magsd.model.errors import NotFoundError
from magsd.storage.unneeded_images import UnneededImages


async def test_the_standard_image_is_there_by_name(tmp_path):
    images = UnneededImages(tmp_path, "standard")
    image = images.get("standard")
    assert (image.name, image.layers) == ("standard", ())
    assert images.names() == ["standard"]
    await images.verify(image.name, [Path("/nowhere")])
    with pytest.raises(NotFoundError, match="other"):
        images.get("other")
    assert list(tmp_path.iterdir()) == []
