"""`magsd doctor` on this machine, which can run what the other tests run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from magsd.aio import SystemClock
from magsd.doctor import storage
from magsd.doctor.check import Verdict
from magsd.doctor.control_groups import control_groups
from magsd.doctor.living import living, sees_all
from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore
from magsd.storage.kernel_package import install_kernel

MAGSD = Path(sys.executable).with_name("magsd")
IMAGES = Path(__file__).parents[2] / "build/images"
KERNELS = Path(__file__).parents[2] / "build/kernel"
# Others on this host may have left something; this machine's runsc may be an old one.
MAY_WARN = {"leftovers", "gvisor", "qemu", "firewall", "image", "limits", "files", "memory"}
TRIED = {"cgroups", "loop", "data", "image", "gvisor", "sandbox", "dns", "egress", "isolation"}
TRIED |= {"qemu", "kvm", "tun", "netdev"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    data.chmod(0o700)
    build_standard(ImageStore(data), IMAGES, False, lambda _: None)
    install_kernel(data, KERNELS, lambda _: None)
    found = {name: text for name, text in os.environ.items() if not name.startswith("MAGSD")}
    return found | {"MAGSD_DATA_DIR": str(data), "MAGSD_API_BIND": "127.0.0.1:1"}


def doctor(environment, *arguments):
    return subprocess.run(
        [MAGSD, "doctor", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_healthy_machine(environment):
    done = doctor(environment, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["is_well"]
    assert {check["what"] for check in told["checks"]} >= TRIED
    bad = [check for check in told["checks"] if check["verdict"] != "ok"]
    assert {check["what"] for check in bad} <= MAY_WARN, bad
    assert all(check["step"] for check in bad), bad
    seen = {check["what"]: check["seen"] for check in told["checks"]}
    assert "gvisor (application-kernel) ran a script in" in seen["sandbox"]
    assert "frozen" in seen["cgroups"]
    assert re.search(
        r"^QEMU \d\S* .*, guest kernel 6\.1\.\S+, looked for \d+ days ago$", seen["qemu"]
    )
    assert "KVM is untested" in seen["kvm"]
    assert "/dev/net/tun" in seen["tun"]
    assert "netdev" in seen["netdev"]
    assert "169.254.169.254" in seen["isolation"]


def test_a_machine_where_nothing_can_run_is_told_and_fails(environment, tmp_path):
    done = doctor(environment | {"MAGSD_DATA_DIR": str(tmp_path / "nothing")})
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith("fail")]
    assert any("image" in line and "magsd image build standard" in line for line in failed)
    assert "sandbox" in lines[-1]
    assert not (tmp_path / "nothing").exists()


def test_without_a_kernel_microvms_are_optional_unless_they_are_wanted(environment, tmp_path):
    tmp_path.chmod(0o700)
    without = environment | {"MAGSD_DATA_DIR": str(tmp_path)}
    build_standard(ImageStore(tmp_path), IMAGES, False, lambda _: None)
    done = doctor(without, "--json")
    checks = {check["what"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout
    assert checks["qemu"]["verdict"] == "ok"
    assert "magsd kernel install" in checks["qemu"]["seen"]
    assert checks["qemu"]["step"] == "optional: gvisor can be used"
    wanted = doctor(without | {"MAGSD_ENGINE": "qemu"})
    assert wanted.returncode == 1
    assert re.search(r"^fail  qemu .*magsd kernel install", wanted.stdout, re.MULTILINE)


def test_a_microvm_is_tried_where_scripts_get_one(environment):
    done = doctor(environment | {"MAGSD_ENGINE": "qemu"}, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = {check["what"]: check["seen"] for check in json.loads(done.stdout)["checks"]}
    assert "qemu (microvm) ran a script in" in seen["sandbox"]
    assert "169.254.169.254" in seen["isolation"]


async def test_a_real_process_is_frozen_and_nothing_stays():
    check = await control_groups(SystemClock())
    assert check.verdict is Verdict.OK, check
    assert not list(Path("/sys/fs/cgroup").glob(f"**/mags-doctor-{os.getpid()}"))


async def test_a_real_loop_device_is_mounted():
    check = await storage.loop_devices()
    assert check.verdict is Verdict.OK, check


def test_a_daemon_is_known_by_the_lock_of_its_directory(tmp_path):
    program = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, 2); "
        "print(flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", program, tmp_path / "lock"]
    with subprocess.Popen(arguments, stdin=-1, stdout=-1, text=True) as holder:
        holder.stdout.readline()
        assert living().daemons.get(tmp_path) == holder.pid
        assert tmp_path not in living(but=holder.pid).daemons
        holder.communicate()
    assert tmp_path not in living().daemons


def test_this_machine_shows_all_of_its_processes():
    assert sees_all()
