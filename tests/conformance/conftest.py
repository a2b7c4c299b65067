"""Every engine on a data directory of its own, and a census around it.

A test that takes `host` is run for each engine; a file about one of them says
so: `pytestmark = pytest.mark.parametrize("host", ["gvisor"], indirect=True)`.
What depends on the guest's root filesystem is marked `on_every_root`.
"""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from magsd.engine.accelerator import Verdict
from magsd.engine.base import Engine
from magsd.storage.images import ImageStore
from magsd.storage.kernel_package import install_kernel
from tests import census
from tests.conformance.fake_host import FakeHost
from tests.conformance.gvisor_host import GvisorHost
from tests.conformance.host import Host
from tests.conformance.kvm_host import KvmHost, verdict_on_kvm
from tests.conformance.qemu_host import QemuHost
from tests.conformance.roots import ALPINE, DEBIAN, HOSTS, REPOSITORY, Root


@contextmanager
def _holding(root: Root, directory: Path) -> Iterator[Path]:
    root.add(ImageStore(directory))
    install_kernel(directory, REPOSITORY / "build/kernel", print)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def image_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory that holds image `standard`, the guest's kernel and nothing else."""
    with _holding(DEBIAN, tmp_path_factory.mktemp("image")) as directory:
        yield directory


@pytest.fixture(scope="session")
def alpine_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with image `alpine`."""
    with _holding(ALPINE, tmp_path_factory.mktemp("alpine")) as directory:
        yield directory


@pytest.fixture(scope="session")
def kvm(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    """Whether KVM works here, tried once."""
    return verdict_on_kvm(tmp_path_factory.mktemp("kvm"))


def _linked(directory: Path, tmp_path: Path) -> Path:
    """Return a copy of a data directory, whose files are shared by hard links."""
    data = tmp_path / "data"
    shutil.copytree(
        directory,
        data,
        symlinks=True,
        copy_function=lambda a, b: Path(b).hardlink_to(a),
    )
    return data


@pytest.fixture
def data(tmp_path: Path, image_directory: Path) -> Path:
    """A data directory with image `standard`."""
    return _linked(image_directory, tmp_path)


def _shared(request: pytest.FixtureRequest) -> Path:
    """Return the data directory that all hosts with the same root begin with."""
    is_alpine = request.param.endswith("-alpine")
    return request.getfixturevalue("alpine_directory" if is_alpine else "image_directory")


def _make(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    if request.param == "fake":
        return FakeHost(tmp_path / "data")
    is_kvm = request.param == "qemu-kvm"
    if is_kvm and not (kvm := request.getfixturevalue("kvm")).is_proven:
        pytest.skip(f"no working KVM: {kvm.why}")
    data = _linked(_shared(request), tmp_path)
    images = ImageStore(data)
    (name,) = images.names()
    usual = QemuHost if request.param.startswith("qemu") else GvisorHost
    kind = KvmHost if is_kvm else usual
    return kind(data, images.get(name))


@pytest.fixture(params=[*HOSTS, "qemu-kvm"])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    """A host that is open; whatever a test leaves running is an error."""
    host = _make(request, tmp_path)
    before = census.take(host.data)
    try:
        await host.open()
        yield host
    finally:
        if (host.data / "run").exists():
            await _sweep(host)
        await host.aclose()
    if isinstance(host, QemuHost):
        host.leave_templates(_shared(request))
    assert not census.left_behind(before, host.data, ignoring=("file run/",))


@pytest.fixture
def snapshots(host: Host, tmp_path: Path) -> Iterator[Path]:
    """A folder for snapshots, which are all deleted at the end."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


async def _sweep(host: Host) -> None:
    """End what a failed test left."""
    async with host.engine() as engine:
        await engine.sweep(frozenset())


@pytest.fixture
async def engine(host: Host) -> AsyncIterator[Engine]:
    """The engine of a daemon that lives for the whole test."""
    async with host.engine() as engine:
        yield engine
