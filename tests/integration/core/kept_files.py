"""What a version holds, read from the object store alone, as another machine would."""

import asyncio
import subprocess
import tempfile
from pathlib import Path

from magsd.aio import SystemClock
from magsd.model.records import Version
from magsd.storage.layers import LayerStore
from magsd.storage.objects import ObjectStore


async def files_of(objects: ObjectStore, version: Version) -> dict[str, str]:
    """Return the files of a version's own layers, those above in place of those below."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = LayerStore(Path(folder), objects, SystemClock(), cache_bytes=0)
        for number, layer in enumerate(version.manifest.own_layers):
            path = await elsewhere.ensure(version.account_id, layer)
            found |= await asyncio.to_thread(_unpacked, path, Path(folder) / str(number))
    return found


def _unpacked(layer: Path, into: Path) -> dict[str, str]:
    command = ["unsquashfs", "-quiet", "-no-progress", "-dest", into, layer]
    subprocess.run(command, check=True, capture_output=True)
    return {
        str(path.relative_to(into)): path.read_text() for path in into.rglob("*") if path.is_file()
    }
