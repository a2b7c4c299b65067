"""Making layer files: squashfs images of what a VM changed.

Both ways go through one narrow place: entries are checked by `tar_rules` and
written as an archive, which becomes a squashfs. So the same content gives the
same bytes, and nothing of a guest's is ever unpacked on the host.

A directory is read by a program of ours. `mksquashfs` takes 16 s for the holes
of a file of 10 GB, and `tar` waits for each file before it asks for the next,
which a disk that was copied by reference makes slow. Fragments and order make
for few changed bytes in the file when little has changed in the directory.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from magsd.model.errors import CapacityError, InvalidError, MagsError, TooLargeError
from magsd.storage import directory_pack, root_import, tar_repack
from magsd.storage.pipelines import Command, Ended, run_pipeline
from magsd.storage.tar_rules import TarLimits

_SQUASH: Final = (
    "tar2sqfs",
    "--quiet",
    "--no-skip",
    "--exportable",
    "--no-tail-packing",
    "--compressor=zstd",
    "--comp-extra=level=1",
)
_JOBS_MAX: Final = 2
"""Of the compressor: more would not be nice to the VMs."""
_OUR_LIMITS: Final = TarLimits()
_CANNOT_WRITE: Final = "I/O error"
"""What `tar2sqfs` says when its file cannot be written, because the disk is full for one."""
_DISK_FULL: Final = "No space left on device"
_PYTHON: Final = (sys.executable, "-I", "-m")


async def pack_directory(directory: Path, into: Path) -> bool:
    """Pack a directory that the host wrote into the new file `into`; whether anything was in it.

    Sockets are left out; devices become whiteouts, which hide as well what was
    there before; names of one FIFO become FIFOs of their own. Raises as `pack_tar`.
    """
    try:
        # Programs do not know this process's own descriptors by their path.
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MagsError("the changes cannot be read", str(error)) from error
    try:
        words = directory_pack.arguments(descriptor, _OUR_LIMITS)
        read = Command([*_PYTHON, "magsd.storage.directory_pack", *words], (descriptor,))
        return await _pack([read, _squash(into)], None)
    finally:
        os.close(descriptor)


async def pack_tar(tar: AsyncIterator[bytes], limits: TarLimits, into: Path) -> bool:
    """Pack an archive that nobody vouches for; whether anything was in it.

    Raises `InvalidError` that names the entry which may not be in a layer,
    `TooLargeError` for what is over a limit, `CapacityError` when the disk
    cannot be written, and what `tar` raises. `into` is then to be removed.
    """
    return await _pack([_repack(limits), _squash(into)], tar)


async def pack_root(source: int, scratch: int, limits: TarLimits, form: str, into: Path) -> bool:
    """Pack the root filesystem in an archive that nobody vouches for; whether anything was in it.

    `source` and `scratch` are files open for reading, the second an empty one
    to be written too; `form` as in `root_import`. Raises as `pack_tar`.
    """
    words = root_import.arguments(source, scratch, limits, form)
    read = Command([*_PYTHON, "magsd.storage.root_import", *words], (source, scratch))
    return await _pack([read, _squash(into)], None, "the archive cannot be imported")


async def pack_merged(layers: Sequence[Path], mount_point: Path, into: Path) -> None:
    """Pack what `layers`, lowest first, do together. Needs root; raises as `pack_tar`.

    `mount_point` is a directory; only its reader sees what is mounted there.
    """
    names = [str(path.absolute()) for path in (mount_point, *layers)]
    merge = Command([*_PYTHON, "magsd.storage.layer_merging", *names])
    await _pack([merge, _squash(into)], None)


def _repack(limits: TarLimits) -> Command:
    words = tar_repack.arguments(limits, is_ours=False)
    return Command([*_PYTHON, "magsd.storage.tar_repack", *words])


def _squash(into: Path) -> Command:
    jobs = min(os.cpu_count() or 1, _JOBS_MAX)
    return Command([*_SQUASH, f"--num-jobs={jobs}", str(into)])


async def _pack(
    commands: Sequence[Command],
    content: AsyncIterator[bytes] | None,
    refusal: str = "the changes cannot be kept",
) -> bool:
    ended = await run_pipeline(commands, content)
    codes = [each.exit_code for each in ended]
    if any(code not in (0, tar_repack.IS_EMPTY) for code in codes):
        raise _failure(ended, refusal)
    return tar_repack.IS_EMPTY not in codes


def _failure(ended: Sequence[Ended], refusal: str) -> MagsError:
    for each in ended:
        if each.exit_code in (tar_repack.IS_REFUSED, tar_repack.IS_TOO_LARGE):
            kind = TooLargeError if each.exit_code == tar_repack.IS_TOO_LARGE else InvalidError
            return kind(f"{refusal}: {each.tail}")
    detail = "; ".join(f"{each.name} ended with {each.exit_code}: {each.tail}" for each in ended)
    is_full = any(each.exit_code and _DISK_FULL in each.tail for each in ended)
    if is_full or (ended[-1].exit_code and _CANNOT_WRITE in ended[-1].tail):
        return CapacityError(
            "the disk of this machine cannot be written now: make room and try again", detail
        )
    if any(each.exit_code == -signal.SIGKILL for each in ended):
        # Nobody else does that.
        return CapacityError(
            "this machine has too little memory to pack the changes now: try again", detail
        )
    return MagsError("the changes could not be packed", detail)
