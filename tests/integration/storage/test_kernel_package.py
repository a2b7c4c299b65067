"""Getting the guest's kernel: from a mirror, from a cache, and when either is not what it should be.

Only one test asks a mirror. The others have a folder of kernels of their own
and an `apt` that is scripted, first in PATH.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from magsd.engine.kernel import Kernel
from magsd.model.errors import MagsError
from magsd.storage import kernel_files, kernel_package, kernel_pin
from magsd.storage.kernel_pin import Pin

ARCHITECTURE = platform.machine()
IMAGE = kernel_files.IMAGE_NAMES.get(ARCHITECTURE, "vmlinux")
VERSION = "6.1.900-1"
AT_ONCE = timedelta(0)


def release(version: str) -> str:
    return f"6.1.0-{version[4:7]}-cloud"


def make(folder: Path, version: str = VERSION) -> Path:
    """Put a small kernel into a folder of kernels, as `kernel_package` does."""
    directory = folder / version
    (directory / "modules").mkdir(parents=True)
    files = {IMAGE: f"image {version}".encode(), "modules/a.ko": b"module"}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    record = {
        "package": f"linux-image-{release(version)}",
        "version": version,
        "release": release(version),
        "architecture": ARCHITECTURE,
        "recipe": kernel_package._RECIPE,
        "image": IMAGE,
        "modules": ["a.ko"],
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    (directory / "kernel.json").write_text(json.dumps(record))
    (folder / "current").symlink_to(version)
    return directory


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Script what apt answers: a function of the versions it knows; its calls are in `calls`."""
    programs = tmp_path / "programs"
    programs.mkdir()
    calls = programs / "calls"

    def script(*versions: str) -> Path:
        shown = "".join(
            f"Package: x\nVersion: {version}\n"
            f"Depends: linux-image-{release(version)} (= {version})\n\n"
            for version in versions
        )
        (programs / "shown").write_text(shown)
        for name, does in (("apt-cache", f"cat {programs}/shown"), ("apt-get", "exit 100")):
            program = programs / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{does}\n')
            program.chmod(0o755)
        calls.write_text("")
        return calls

    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return script


@pytest.mark.network
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt here")
def test_a_kernel_is_fetched_taken_out_and_replaced_when_damaged(tmp_path):
    cache, said = tmp_path / "cache", []
    got = kernel_package.get_cached(cache, said.append)
    assert said[-1].startswith("guest kernel: fetching linux-image-")
    assert Pin.read().accepts(got.version)
    kernel = Kernel.read(cache)
    assert (kernel.version, kernel.release) == (got.version, got.record["release"])
    names = [path.name for path in kernel.modules]
    assert {"virtio_blk.ko", "virtio_net.ko", "squashfs.ko", "overlay.ko"} <= set(names)
    assert names.index("failover.ko") < names.index("net_failover.ko")
    assert names.index("net_failover.ko") < names.index("virtio_net.ko")
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in kernel.modules)
    if ARCHITECTURE == "x86_64":
        notes = subprocess.run(["grep", "-c", "Linux version", kernel.image], capture_output=True)
        assert notes.returncode == 0
    assert kernel_package.is_settled(cache)
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [".lock", ".looked", "current", got.version]
    )

    kernel.modules[0].chmod(0o644)
    kernel.modules[0].write_bytes(b"\x7fELF no module")
    kernel_package.get_cached(cache, said.append)
    again = Kernel.read(cache)
    assert again.digest == kernel.digest
    assert again.modules[0].read_bytes() != b"\x7fELF no module"


def test_a_data_directory_shares_what_the_cache_has(tmp_path, apt):
    calls = apt()
    cache, data, said = tmp_path / "cache", tmp_path / "data", []
    made = make(cache)
    got = kernel_package.install_kernel(data, cache, said.append)
    assert got.version == VERSION
    assert os.path.samefile(made / IMAGE, Kernel.read(data / "kernel").image)
    assert said[-1].endswith(f"installed from {cache}")
    said.clear()
    kernel_package.install_kernel(data, cache, said.append)
    assert said == [f"guest kernel {VERSION} is up to date"]
    assert calls.read_text() == ""


@pytest.mark.parametrize("name", [IMAGE, "modules/a.ko", "kernel.json"])
def test_what_is_damaged_in_a_data_directory_is_replaced(tmp_path, apt, name):
    apt()
    cache, data = tmp_path / "cache", tmp_path / "data"
    make(cache)
    installed = kernel_package.install_kernel(data, cache, print)
    content = (installed.directory / name).read_bytes()
    (installed.directory / name).unlink()
    (installed.directory / name).write_bytes(b"{")
    again = kernel_package.install_kernel(data, cache, print)
    assert (again.directory / name).read_bytes() == content
    assert not list((data / "kernel").glob(".new-*"))


def test_the_version_before_stays_until_the_next(tmp_path, apt):
    apt()
    data = tmp_path / "data"
    for count, version in enumerate(("6.1.900-1", "6.1.901-1", "6.1.902-1")):
        cache = tmp_path / f"cache {count}"
        make(cache, version)
        kernel_package.install_kernel(data, cache, print)
    assert {path.name for path in (data / "kernel").glob("6*")} == {"6.1.901-1", "6.1.902-1"}
    assert Kernel.read(data / "kernel").version == "6.1.902-1"


def test_it_looks_for_a_newer_one_once_a_day(tmp_path, apt):
    calls = apt(VERSION)
    cache = tmp_path / "cache"
    make(cache)
    assert not kernel_package.is_settled(cache)
    for _ in range(2):
        kernel_package.get_cached(cache, print, kernel_package.DAILY)
    assert calls.read_text().count("\n") == 1
    assert kernel_package.is_settled(cache)
    kernel_package.get_cached(cache, print, AT_ONCE)
    assert calls.read_text().count("\n") == 2
    assert "update" not in calls.read_text()


def test_what_is_there_is_used_when_no_mirror_is_reached(tmp_path, apt):
    calls = apt("6.1.901-1")
    cache, said = tmp_path / "cache", []
    make(cache)
    assert kernel_package.get_cached(cache, said.append, AT_ONCE).version == VERSION
    assert said[-1].endswith(f"using {VERSION}")
    assert "apt-get" in calls.read_text()
    assert kernel_package.is_settled(cache)
    assert not list(cache.glob(".get-*"))


@pytest.mark.parametrize("versions", [(), ("6.1.4-1",)])
def test_a_mirror_with_older_ones_alone_is_refused(tmp_path, apt, monkeypatch, versions):
    apt(*versions)
    # Its `apt-get update` works, and brings nothing new.
    (tmp_path / "programs/apt-get").write_text("#!/bin/sh\n")
    with pytest.raises(MagsError, match=Pin.read().least) as refused:
        kernel_package.get_cached(tmp_path / "cache", print)
    assert all(version in refused.value.message for version in versions)


def test_one_older_than_the_pin_will_not_do(tmp_path, apt):
    apt()
    cache = tmp_path / "cache"
    make(cache, "6.1.100-1")
    assert not kernel_package.is_settled(cache)
    with pytest.raises(MagsError):
        kernel_package.get_cached(cache, print)


def test_the_pin_follows_the_mirror(tmp_path, apt):
    apt("6.1.950-1")
    (tmp_path / "programs/apt-get").write_text("#!/bin/sh\n")
    pin = tmp_path / "kernel.toml"
    shutil.copy(kernel_pin.PIN_FILE, pin)
    before = Pin.read(pin).least
    assert kernel_package.update_pin(pin) == (before, "6.1.950-1")
    assert Pin.read(pin).least == "6.1.950-1"
    assert kernel_package.update_pin(pin) == ("6.1.950-1", "6.1.950-1")
