"""Reading a folder of kernels."""

import json
import platform

import pytest

from magsd.engine.kernel import Kernel
from magsd.model.errors import LaunchError

RECORD = {
    "version": "6.1.9-1",
    "release": "6.1.0-9-cloud",
    "architecture": platform.machine(),
    "image": "vmlinux",
    "modules": ["b.ko", "a.ko"],
    "sha256": {"vmlinux": "1", "modules/b.ko": "2", "modules/a.ko": "3"},
}


def write(directory, record):
    folder = directory / record["version"]
    (folder / "modules").mkdir(parents=True, exist_ok=True)
    for name in record["sha256"]:
        (folder / name).touch()
    (folder / "kernel.json").write_text(json.dumps(record))
    link = directory / "current"
    link.unlink(missing_ok=True)
    link.symlink_to(record["version"])
    return folder


def test_it_is_what_the_record_says(tmp_path):
    folder = write(tmp_path, RECORD)
    kernel = Kernel.read(tmp_path)
    assert kernel.image == folder / "vmlinux"
    assert kernel.modules == (folder / "modules/b.ko", folder / "modules/a.ko")
    assert (kernel.version, kernel.release) == ("6.1.9-1", "6.1.0-9-cloud")


def test_its_paths_stay_when_another_comes(tmp_path):
    write(tmp_path, RECORD)
    kernel = Kernel.read(tmp_path)
    write(tmp_path, {**RECORD, "version": "6.1.10-1"})
    assert kernel.image.is_file()
    assert "6.1.9-1" in kernel.image.parts


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": {**RECORD["sha256"], "vmlinux": "x"}},
        {"sha256": {**RECORD["sha256"], "modules/a.ko": "x"}},
        {"modules": ["a.ko", "b.ko"]},
        {"modules": ["b.ko"]},
    ],
)
def test_its_digest_names_content_and_order(tmp_path, change):
    write(tmp_path, RECORD)
    before = Kernel.read(tmp_path).digest
    write(tmp_path, {**RECORD, "version": "6.1.9-2"})
    assert Kernel.read(tmp_path).digest == before
    write(tmp_path, {**RECORD, **change})
    assert Kernel.read(tmp_path).digest != before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder.parent / "current").unlink(), "there is no guest kernel"),
        (lambda folder: (folder / "vmlinux").unlink(), "vmlinux of the guest kernel is missing"),
        (lambda folder: (folder / "modules/a.ko").unlink(), "a.ko of the guest kernel is missing"),
        (lambda folder: (folder / "kernel.json").write_text("{"), "record cannot be read"),
        (lambda folder: (folder / "kernel.json").write_text("[]"), "record cannot be read"),
        (
            lambda folder: write(folder.parent, {**RECORD, "architecture": "vax"}),
            "the guest kernel is for vax",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_next_step(tmp_path, damage, said):
    damage(write(tmp_path, RECORD))
    with pytest.raises(LaunchError, match=f"{said}.*magsd kernel install"):
        Kernel.read(tmp_path)
