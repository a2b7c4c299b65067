"""A snapshot's files: whole or not there, and refused when they are not what they were."""

import json
import os
from pathlib import Path

import pytest

from magsd.engine import snapshot_files
from magsd.engine.base import SnapshotError
from magsd.engine.snapshot_files import MEMORY, STATE, STREAMS, Manifest, Mark
from magsd.model.names import VmId


def mark_of(path: Path) -> Mark:
    with path.open("rb") as file:
        return Mark.of(file.fileno())


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Manifest]:
    into = tmp_path / "snapshot"
    with snapshot_files.written_aside(into) as aside:
        for name in (MEMORY, STATE, STREAMS):
            snapshot_files.write_whole(aside / name, name.encode())
        vm, mark = VmId("0123abcd"), mark_of(aside / MEMORY)
        manifest = Manifest(vm, False, {"layers": ["a"], "slots": 2}, vm, mark, mark)
        snapshot_files.write_manifest(aside, manifest)
        snapshot_files.commit(aside, into)
    return into, manifest


def test_what_was_written_is_read(made: tuple[Path, Manifest]) -> None:
    into, manifest = made
    assert snapshot_files.exists(into)
    assert snapshot_files.read(into) == manifest
    memory = snapshot_files.open_memory(into, manifest)
    assert os.pread(memory, 100, 0) == MEMORY.encode()
    os.close(memory)
    assert os.listdir(into.parent) == ["snapshot"]


def test_what_is_not_finished_is_nothing(tmp_path: Path) -> None:
    with snapshot_files.written_aside(tmp_path / "snapshot") as aside:
        (aside / MEMORY).write_bytes(b"half")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [STATE, STREAMS, "manifest.json"])
def test_another_small_file_is_refused(made: tuple[Path, Manifest], name: str) -> None:
    (made[0] / name).write_bytes(b"{}")
    with pytest.raises(SnapshotError, match="damaged: start from the disk"):
        snapshot_files.read(made[0])


def test_another_memory_is_refused(made: tuple[Path, Manifest]) -> None:
    into, manifest = made
    (into / MEMORY).write_bytes(b"Memory")
    with pytest.raises(SnapshotError, match="damaged"):
        snapshot_files.open_memory(into, manifest)
    (into / MEMORY).unlink()
    with pytest.raises(SnapshotError, match="damaged"):
        snapshot_files.open_memory(into, manifest)


def test_one_of_another_form_is_refused(made: tuple[Path, Manifest]) -> None:
    file = made[0] / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"form": 0}))
    with pytest.raises(SnapshotError, match="another magsd"):
        snapshot_files.read(made[0])
