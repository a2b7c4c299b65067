"""The root filesystems of guests: Debian's, and one with musl, busybox and little else.

Most of the contract has nothing to do with what lies in a guest; a test that does
is marked `on_every_root`, and is run on the second root too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore
from tests.alpine import alpine_squashfs

REPOSITORY: Final = Path(__file__).resolve().parents[2]

HOSTS: Final = ("gvisor", "qemu", "fake")
"""Whatever a test says that only takes `host`."""
WITH_ROOTS: Final = ("gvisor", "qemu", "gvisor-alpine", "qemu-alpine")
"""Whose guests have a root: an engine, and the root's name unless it is Debian's."""

on_every_root = pytest.mark.parametrize("host", [*WITH_ROOTS, "fake"], indirect=True)


@dataclass(frozen=True)
class Root:
    """What tests must know of a root filesystem."""

    image: str
    add: Callable[[ImageStore], object]
    """Puts the image into a store."""
    packages: str
    """A command that its package manager answers."""
    fetch: str
    """A command that gets the URL behind it, and fails where that cannot be had."""
    has_machine_id: bool
    has_pip_settings: bool
    """It has an `/etc/pip.conf`, over which the host's can be shown."""


DEBIAN: Final = Root(
    image="standard",
    add=lambda store: build_standard(store, REPOSITORY / "build/images", False, print),
    packages="apt-get --version",
    fetch="curl -sSf -o /dev/null",
    has_machine_id=True,
    has_pip_settings=True,
)
ALPINE: Final = Root(
    image="alpine",
    add=lambda store: store.add("alpine", alpine_squashfs(REPOSITORY / "build/alpine"), {}),
    packages="apk --version",
    fetch="wget -q -O /dev/null",
    has_machine_id=False,
    has_pip_settings=False,
)
ROOTS: Final = {root.image: root for root in (DEBIAN, ALPINE)}
