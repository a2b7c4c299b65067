"""A template's files: what was written is what is read, or nothing is."""

import os

import pytest

from magsd.engine import template_files
from magsd.engine.template_files import Template

FACTS = {"kernel": "a", "memory_mb": 16}
SIZE = 16 << 20
KEY = "0" * 32


@pytest.fixture
def template(tmp_path):
    memory = template_files.new_memory(SIZE)
    os.pwrite(memory, b"first", 4096)
    os.pwrite(memory, b"last", SIZE - 4)
    os.pwrite(memory, bytes(8192), 1 << 20)  # zeros that are no hole
    disk = os.memfd_create("disk", os.MFD_CLOEXEC)
    os.ftruncate(disk, 1 << 20)
    os.pwrite(disk, b"superblock", 1024)
    made = Template(memory, disk, b"the devices")
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path, template):
    directory = tmp_path / "templates"
    template_files.write(directory, KEY, template, FACTS)
    return directory


def same(first: int, second: int) -> bool:
    sizes = {os.fstat(descriptor).st_size for descriptor in (first, second)}
    return len(sizes) == 1 and os.pread(first, SIZE, 0) == os.pread(second, SIZE, 0)


def test_what_was_written_is_read(folder, template):
    found = template_files.read(folder, KEY, FACTS)
    assert found is not None
    assert found.state == template.state
    assert same(found.memory, template.memory)
    assert same(found.disk, template.disk)
    found.close()


def test_holes_stay_holes(folder):
    assert (folder / KEY / "memory").stat().st_blocks * 512 < SIZE / 4


def test_nobody_can_write_to_what_was_read(folder):
    found = template_files.read(folder, KEY, FACTS)
    with pytest.raises(PermissionError):
        os.pwrite(found.memory, b"x", 0)
    with pytest.raises(OSError, match="Bad file"):
        os.pwrite(found.disk, b"x", 0)
    found.close()


def test_there_may_be_none(tmp_path):
    assert template_files.read(tmp_path, KEY, FACTS) is None


@pytest.mark.parametrize("name", ["memory", "state", "disk", "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "shorter", "gone", "empty"])
def test_what_is_damaged_is_none_and_is_removed(folder, name, damage):
    file = folder / KEY / name
    content = bytearray(file.read_bytes())
    match damage:
        case "changed":
            content[4096 % len(content)] ^= 1
            file.write_bytes(content)
        case "shorter":
            os.truncate(file, len(content) // 2)
        case "gone":
            file.unlink()
        case _:
            file.write_bytes(b"")
    assert template_files.read(folder, KEY, FACTS) is None
    assert not (folder / KEY).exists()


def test_one_that_was_made_of_something_else_is_none(folder):
    assert template_files.read(folder, KEY, {**FACTS, "kernel": "b"}) is None
    assert not (folder / KEY).exists()


def test_it_is_replaced_whole(folder, template):
    template_files.write(folder, KEY, Template(template.memory, template.disk, b"other"), FACTS)
    found = template_files.read(folder, KEY, FACTS)
    assert found.state == b"other"
    found.close()
    assert [path.name for path in folder.iterdir()] == [KEY]


def test_what_nobody_needs_is_removed(folder, template):
    now = (folder / KEY).stat().st_mtime
    (folder / ".new-abc").mkdir()
    template_files.write(folder, "1" * 32, template, {**FACTS, "kernel": "old"})
    (folder / ("2" * 32)).mkdir()
    template_files.remove_unneeded(folder, {"kernel": "a"}, 60, now)
    assert [path.name for path in folder.iterdir()] == [KEY]
    template_files.remove_unneeded(folder, {"kernel": "a"}, 60, now + 61)
    assert list(folder.iterdir()) == []
