"""KVM is tried with real machines, and whatever comes of it nothing of them is left."""

import asyncio
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from magsd.aio import SystemClock
from magsd.doctor import slots
from magsd.doctor.check import Verdict as Judgement
from magsd.doctor.living import living
from magsd.engine import accelerator_device, accelerator_probe
from magsd.engine.accelerator import Finding, Verdict
from magsd.engine.kernel import Kernel
from magsd.engine.network import Network, NetworkSettings, instance_of
from magsd.engine.qemu import QemuEngine, QemuSettings
from magsd.engine.vm_host import VmHost, VmHostSettings
from magsd.model.errors import LaunchError
from tests import census

KERNELS = Path(__file__).parents[2] / "build/kernel"
PATIENCE_S = 120.0
"""An emulated machine boots in two seconds, and in many times that on a host that is busy."""

has_kvm = pytest.mark.skipif(
    not accelerator_device.NODE.exists(), reason="this machine has no KVM that could be tried"
)


@pytest.fixture
def host(tmp_path):
    """The settings of a data directory that has a kernel and no image; nothing stays in it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "kernel").symlink_to(KERNELS)
    probe = tmp_path / "tmp/kvm"
    before, before_it = census.take(tmp_path), census.take(probe)
    yield VmHostSettings(tmp_path, instance_of(tmp_path))
    assert not census.left_behind(before_it, probe)
    assert not census.left_behind(before, tmp_path)
    assert not list((tmp_path / "tmp").iterdir())


async def test_machines_that_work_are_found_to(host):
    found = await accelerator_probe.try_out(host, SystemClock(), "tcg", PATIENCE_S)
    assert found.finding is Finding.WORKS, found


async def test_a_machine_that_hangs_is_ended(host):
    found = await accelerator_probe.try_out(host, SystemClock(), "tcg", 0.2)
    assert found.finding is Finding.FAILS
    assert "a machine that boots did not come up" in found.why
    assert "within 0.2 s" in found.why


async def test_a_machine_that_cannot_start_says_why(host):
    kernels = host.data_directory / "kernel"
    kernels.unlink()
    shutil.copytree(KERNELS, kernels, symlinks=True)
    Kernel.read(kernels).image.write_bytes(b"no kernel")
    found = await accelerator_probe.try_out(host, SystemClock(), "tcg", PATIENCE_S)
    assert found.finding is Finding.FAILS
    assert "a machine that boots failed" in found.why
    assert "kernel" in found.why


async def test_a_service_that_is_stopped_meanwhile_leaves_nothing(host):
    async with asyncio.timeout(PATIENCE_S):
        trying = asyncio.ensure_future(
            accelerator_probe.try_out(host, SystemClock(), "tcg", PATIENCE_S)
        )
        run = host.data_directory / "tmp/kvm/run"
        while not list(run.glob("*/record.json")):
            assert not trying.done(), trying
            await asyncio.sleep(0.01)
        # Whoever looks for leftovers sees that somebody works there.
        assert instance_of(run.parent) in living().instances
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying


@has_kvm
async def test_kvm_is_tried_once_and_not_for_ever(host):
    found = await accelerator_probe.verdict(host, SystemClock())
    assert found.finding is not Finding.UNTRIED, found
    # The emulator came as far as KVM itself, whatever became of that.
    assert "/dev/kvm" not in found.why
    assert "access KVM" not in found.why
    file = host.data_directory / "accelerator.json"
    kept = json.loads(file.read_text())
    assert kept["why"] == found.why
    file.write_text(json.dumps(kept | {"why": "as it was kept"}))
    again = await accelerator_probe.verdict(host, SystemClock())
    assert again == Verdict(found.finding, "as it was kept")
    assert await accelerator_probe.known_verdict(host.data_directory) == again


@has_kvm
async def test_without_a_kernel_nothing_is_tried_and_nothing_kept(tmp_path):
    host = VmHostSettings(tmp_path, instance_of(tmp_path))
    found = await accelerator_probe.verdict(host, SystemClock())
    assert found.finding is Finding.UNTRIED
    assert "magsd kernel install" in found.why
    assert not list(tmp_path.iterdir())


@has_kvm
def test_the_emulators_device_is_that_of_the_host_and_open_to_it():
    folder = accelerator_device.device_folder()
    try:
        node = os.stat("kvm", dir_fd=folder)
        assert stat.S_ISCHR(node.st_mode)
        assert node.st_rdev == accelerator_device.NODE.stat().st_rdev
        assert stat.S_IMODE(node.st_mode) == 0o666
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o755
        assert os.listdir(f"/proc/self/fd/{folder}") == ["kvm"]
    finally:
        os.close(folder)


async def test_an_engine_that_is_refused_says_so_and_prepares_nothing(tmp_path):
    clock = SystemClock()
    network = Network(NetworkSettings(instance_of(tmp_path), tmp_path), None, clock)
    host = VmHost(VmHostSettings(tmp_path, instance_of(tmp_path)), network, clock)
    engine = QemuEngine(QemuSettings("kvm", "KVM hangs here"), host, {})
    with pytest.raises(LaunchError, match="KVM hangs here"):
        await engine.prepare()
    await engine.aclose()
    assert not list(tmp_path.iterdir())


def test_the_interfaces_and_rules_of_sandboxes_are_tried_for_real():
    before = census.take()
    for check in (slots.rules(), slots.taps(is_needed=False)):
        assert check.verdict is Judgement.OK, check
    assert not census.left_behind(before)
