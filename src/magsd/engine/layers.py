"""Read-only layers, each mounted once on this host, handed to VMs as detached copies.

Owns a thread whose mount namespace nobody else sees: layers are mounted there
and nowhere else, so that nothing can walk into them, and a dead daemon leaves
none behind. A VM's copy lives in the VM's own namespace and so as long as it.

A layer's content is trusted no more than its file: who checks that is
`storage.images`. Here a file that is no filesystem is an error.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from magsd.aio import finish
from magsd.engine import mounts
from magsd.model.errors import JobCode, LaunchError

T = TypeVar("T")

_HOME: Final = Path("/run")
"""Always there and empty enough: the thread's own tmpfs hides it, in its namespace only."""
_KIND: Final = "squashfs"


class Layers:
    """The layers that are mounted on this host."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="layers", initializer=_enter_home)
        self._mounted: dict[Path, tuple[Path, int]] = {}
        self._files: dict[bytes, Path] = {}
        self._count = 0

    async def clone(self, layer: Path) -> int:
        """Return a descriptor of a detached mount of `layer`; the caller closes it.

        Mounts it first if need be (3 to 6 ms). Raises `LaunchError`
        (`image_damaged`) when the file is missing or no layer.
        """
        try:
            return await self._in_thread(lambda: self._clone(layer))
        except OSError as error:
            raise LaunchError(
                f"the image layer {layer.name} cannot be mounted: build or add its image again",
                str(error),
                JobCode.IMAGE_DAMAGED,
            ) from error

    async def clone_file(self, content: bytes) -> int:
        """Return a descriptor of a detached mount of a read-only file; the caller closes it.

        For a file of the host that an engine is to see with other content.
        """
        return await self._in_thread(lambda: self._clone_file(content))

    async def aclose(self) -> None:
        """Unmount everything; copies that VMs have live on. Idempotent."""
        await finish(asyncio.to_thread(self._thread.shutdown, wait=True))

    async def _in_thread(self, work: Callable[[], int]) -> int:
        """Run `work` in the thread; on cancellation close the descriptor it returns."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(_close_result)
            raise

    def _clone(self, layer: Path) -> int:
        inode = layer.stat().st_ino
        known = self._mounted.get(layer)
        if known is not None and known[1] != inode:
            # Its file was replaced; who has the old one keeps it.
            del self._mounted[layer]
            mounts.unmount(known[0])
            known = None
        if known is None:
            known = (self._mount(layer), inode)
            self._mounted[layer] = known
        return mounts.clone_mount(known[0])

    def _mount(self, layer: Path) -> Path:
        target = self._new_name()
        target.mkdir()
        try:
            mounts.mount_image(layer, target, _KIND)
        except BaseException:
            target.rmdir()
            raise
        return target

    def _clone_file(self, content: bytes) -> int:
        path = self._files.get(content)
        if path is None:
            path = self._new_name()
            path.write_bytes(content)
            path.chmod(0o444)
            self._files[content] = path
        return mounts.clone_mount(path)

    def _new_name(self) -> Path:
        self._count += 1
        return _HOME / str(self._count)


def _enter_home() -> None:
    mounts.enter_private_namespace()
    flags = mounts.MS_NOSUID | mounts.MS_NODEV
    mounts.mount("mags-layers", _HOME, "tmpfs", flags, "mode=0700,size=16m")


def _close_result(done: asyncio.Future[int]) -> None:
    with contextlib.suppress(Exception):
        os.close(done.result())
