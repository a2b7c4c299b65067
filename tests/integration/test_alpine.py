"""The root filesystem with another C library that tests take."""

import subprocess
from pathlib import Path

from tests.alpine import alpine_squashfs

CACHE = Path(__file__).resolve().parents[2] / "build/alpine"


def test_it_is_made_once_and_has_no_kernel():
    squashfs = alpine_squashfs(CACHE)
    made = squashfs.stat().st_ino
    assert alpine_squashfs(CACHE).stat().st_ino == made
    command = ["unsquashfs", "-n", "-l", "-d", "", str(squashfs)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert {"/bin/busybox", "/etc/alpine-release", "/lib/ld-musl-x86_64.so.1"} <= {
        line.replace("aarch64", "x86_64") for line in listed
    }
    assert not [line for line in listed if line.startswith(("/boot", "/lib/modules/"))]
    assert squashfs.stat().st_size < 50_000_000
    assert not list(CACHE.glob(".new-*"))
