"""Reading a machine's memory: tried on memory of this process."""

import mmap
import os
from collections.abc import Iterator

import pytest

from magsd.engine.memory_image import MachineMemory
from magsd.model.errors import LaunchError

PAGE = 4096
# So that no other file of this process is as long.
SIZE = (8 << 20) + 7 * PAGE


@pytest.fixture
def base() -> Iterator[int]:
    file = os.memfd_create("base")
    os.truncate(file, SIZE)
    os.pwrite(file, b"b" * PAGE, 0)
    os.pwrite(file, b"c" * PAGE, 5 * PAGE)
    yield file
    os.close(file)


@pytest.fixture
def target() -> Iterator[int]:
    file = os.memfd_create("target")
    yield file
    os.close(file)


def copied(target: int) -> bytes:
    memory = MachineMemory.of(os.getpid(), SIZE)
    try:
        memory.copy_ahead(target)
        memory.copy_rest(target)
    finally:
        memory.close()
    return os.pread(target, SIZE + 1, 0)


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_what_was_written_is_in_it(base: int, target: int, flags: int) -> None:
    with mmap.mmap(base, SIZE, flags) as mapped:
        mapped[PAGE : PAGE + 3] = b"own"
        mapped[5 * PAGE : 6 * PAGE] = bytes(PAGE)
        mapped[SIZE - 1 :] = b"!"
        found = copied(target)
        assert os.fstat(target).st_blocks * 512 < SIZE // 2
        assert found == mapped[:]
    assert found[:PAGE] == b"b" * PAGE


def test_a_page_that_was_made_zero_is_zero(base: int, target: int) -> None:
    with mmap.mmap(base, SIZE, mmap.MAP_PRIVATE) as mapped:
        mapped[:PAGE] = bytes(PAGE)
        assert copied(target)[:PAGE] == bytes(PAGE)


def test_memory_that_is_not_mapped_whole_is_refused(base: int, target: int) -> None:
    with mmap.mmap(base, SIZE - PAGE, mmap.MAP_PRIVATE), pytest.raises(LaunchError):
        copied(target)
