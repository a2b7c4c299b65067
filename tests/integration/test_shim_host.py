"""What a shim does to its host: rights, mounts, cgroups, and that nothing of it stays."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.guest.state import EndCode, read_stream
from tests.integration.shim_process import (
    AGENT,
    UID,
    ShimProcess,
    ended,
    killed,
    open_tree,
    processes_of,
    shell,
    until,
)

PATH = {"PATH": "/usr/bin:/bin"}
WRONG_LOG_RATES = ("", "5", ":65536", "0:65536", "5:65535", "5:65536:1", "-5:65536", f"5:{1 << 41}")


async def output(shim: ShimProcess, script: str) -> str:
    """Run a script in the VM and return what it printed; it must succeed."""
    result = await streams.run(shim.control, ["/bin/sh", "-ec", script], environment=PATH)
    assert result.wait_status == 0, result.stderr
    return result.stdout.decode()


async def test_the_shim_gives_up_its_rights(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        text = Path(f"/proc/{shim.pid}/status").read_text()
        status = {
            key: value.split()
            for key, _, value in (line.partition(":") for line in text.splitlines())
        }
        assert status["Uid"] == status["Gid"] == [str(UID)] * 4
        assert status["Groups"] == []
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name][0], 16) == 0
        assert status["NoNewPrivs"] == ["1"]
        assert status["Seccomp"] == ["2"]
        assert status["NSpid"][-1] == "1"
        fds = {os.readlink(f"/proc/{shim.pid}/fd/{fd}") for fd in range(3)}
        assert fds == {"/dev/null"}


async def test_the_engine_gets_what_the_plan_says_and_nothing_else(tmp_path):
    script = "(readlink /proc/$$/fd/*; echo; cat /proc/$$/status; env; echo $1) > $0; exec " + str(
        AGENT
    )
    report = tmp_path / "report"
    arguments = ["/bin/sh", "-c", script, str(report), "before-@PID@-after"]
    environment = ("ONE=1", "PATH=/usr/bin:/bin")
    async with await ShimProcess.open(tmp_path, arguments, environment=environment) as shim:
        links, _, rest = report.read_text().partition("\n\n")
        assert [link.partition(":")[0] for link in links.splitlines()] == [
            "socket",
            "socket",
            "pipe",
        ]
        lines = rest.splitlines()
        assert f"before-{shim.pid}-after" in lines
        assert "ONE=1" in lines
        assert not any(line.startswith(("HOME=", "VIRTUAL_ENV=")) for line in lines)
        assert "SigIgn:\t0000000000000000" in lines
        assert "SigBlk:\t0000000000000000" in lines


async def test_a_plan_that_cannot_be_carried_out_says_why(tmp_path):
    for steps, text in [
        ([("mkdir", f"{tmp_path}/no/where")], "mkdir"),
        ([("layer", f"1:{tmp_path}")], "layer"),
        ([("disk", "0:/x")], "disk"),
        ([("netns", "0")], "netns"),
        ([("colour", "red")], "colour"),
        ([("cgroup", "x")], "cgroup"),
        ([("freezer_events", "x")], "freezer_events"),
        *(([("log_rate", value)], "log_rate") for value in WRONG_LOG_RATES),
        ([("overlay", f"{tmp_path}:a:b")], "overlay"),
    ]:
        with pytest.raises(ShimError, match=text):
            await ShimProcess.open(tmp_path, steps=steps)


async def test_all_is_gone_when_the_shim_is_killed(tmp_path, disk, layer):
    descriptor, steps = vm_disk(tmp_path, disk, layer)
    async with await ShimProcess.open(tmp_path, steps=steps, descriptors=descriptor) as shim:
        await shim.control.open_durable(1, shell("setsid sleep 60 & setsid sleep 60 & sleep 60"))
        await until(lambda: len(shim.processes()) >= 5)
        assert len(loop_devices(tmp_path)) == 2
        namespaces = {os.readlink(f"/proc/{shim.pid}/ns/{kind}") for kind in ("mnt", "ipc", "pid")}
        assert not namespaces & {
            os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "ipc", "pid")
        }
        pid_namespace = os.readlink(f"/proc/{shim.pid}/ns/pid")
        os.kill(shim.pid, signal.SIGKILL)
        assert await shim.ended() == -signal.SIGKILL
        assert processes_of(pid_namespace) == []
        await until(lambda: not loop_devices(tmp_path))
        assert str(tmp_path / "vm") not in Path("/proc/mounts").read_text()


async def test_disk_layers_and_overlay_make_the_root(tmp_path, disk, layer):
    descriptors, steps = vm_disk(tmp_path, disk, layer)
    root = tmp_path / "vm/root"
    async with await ShimProcess.open(tmp_path, steps=steps, descriptors=descriptors) as shim:
        assert await output(shim, f"cat {root}/from-layer") == "layer\n"
        await output(
            shim, f"echo new > {root}/new; rm {root}/from-layer; test ! -e {root}/from-layer"
        )
        assert (
            await output(shim, f"cat {tmp_path}/vm/disk/upper/new; stat -c %a {tmp_path}/vm")
            == "new\n700\n"
        )
        assert await output(
            shim, f"stat -c %a {root}; cat {tmp_path}/vm/hello; stat -c %a {tmp_path}/vm/hello"
        ) == "755\ncopied 640\n".replace(" ", "\n")
        mounts = {
            line.split()[1]: line.split()
            for line in (await output(shim, "cat /proc/mounts")).splitlines()
        }
        assert mounts[str(root)][2] == "overlay"
        assert (
            "redirect_dir=nofollow" in mounts[str(root)][3]
            or "redirect_dir" not in mounts[str(root)][3]
        )
        assert {"nosuid", "nodev"} <= set(mounts[f"{tmp_path}/vm/disk"][3].split(","))
        assert not (tmp_path / "vm/root").exists()
        await killed(shim)
    await until(lambda: not loop_devices(tmp_path))


async def test_a_path_can_be_hidden_and_the_network_is_the_given_one(tmp_path):
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        namespace = Path(f"/proc/{holder.pid}/ns/net")
        await until(lambda: os.readlink(namespace) != os.readlink("/proc/self/ns/net"))
        expected = os.readlink(namespace)
        netns = os.open(namespace, os.O_RDONLY)
        steps = [("netns", str(netns)), ("hide", "/proc/sys/net")]
        async with await ShimProcess.open(tmp_path, steps=steps, descriptors=[netns]) as shim:
            assert await output(shim, "ls -A /proc/sys/net") == ""
            for link in ("/proc/1/ns/net", "/proc/self/ns/net"):
                assert await output(shim, f"readlink {link}") == f"{expected}\n"
            with pytest.raises(AssertionError, match="Read-only"):
                await output(shim, "touch /proc/sys/net/x")
    finally:
        holder.kill()
        holder.wait()


async def test_a_full_disk_ends_the_vm_and_is_recorded(tmp_path, mount_tmpfs):
    directory = mount_tmpfs("size=2m")
    async with await ShimProcess.open(directory) as shim:
        await shim.control.open_durable(1, shell("exec cat /dev/zero"))
        assert "No space left" in await ended(shim, EndCode.HOST_DISK_FULL)
        assert read_stream(directory, 1).out_bytes > 0


# --- what the host offers ----------------------------------------------------------


@pytest.fixture
def mount_tmpfs(tmp_path):
    """Return a function that mounts a tmpfs with the given options and tells where."""
    where = tmp_path / "tmpfs"

    def mount(options: str) -> Path:
        where.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], check=True)
        return where

    yield mount
    subprocess.run(["umount", where], check=True)


@pytest.fixture
def disk(tmp_path) -> Path:
    """An ext4 image."""
    image = tmp_path / "disk.ext4"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", image], check=True)
    return image


@pytest.fixture
def layer(tmp_path) -> int:
    """A descriptor of a detached mount of a squashfs with one file."""
    content = tmp_path / "content"
    content.mkdir()
    (content / "from-layer").write_text("layer\n")
    image, where = tmp_path / "layer.sqfs", tmp_path / "mounted"
    subprocess.run(["mksquashfs", content, image, "-quiet", "-no-progress"], check=True)
    where.mkdir()
    subprocess.run(["mount", "-o", "loop,ro,nosuid,nodev", image, where], check=True)
    try:
        return open_tree(where)
    finally:
        subprocess.run(["umount", where], check=True)


def vm_disk(directory: Path, disk: Path, layer: int):
    """Return the descriptors and steps of a root as a VM has it, in `directory`/vm."""
    image = os.open(disk, os.O_RDWR)
    hello = os.open(directory / "hello", os.O_RDWR | os.O_CREAT)
    os.write(hello, b"copied\n")
    vm = directory / "vm"
    vm.mkdir()
    upper, work = f"{vm}/disk/upper", f"{vm}/disk/work"
    steps = [
        ("tmpfs", f"{vm}"),
        *(("mkdir", f"{vm}/{name}") for name in ("layer", "disk", "root")),
        ("copy", f"{hello}:640:{vm}/hello"),
        ("layer", f"{layer}:{vm}/layer"),
        ("disk", f"{image}:{vm}/disk"),
        ("mkdir", upper),
        ("mkdir", work),
        ("overlay", f"{vm}/root:{upper}:{work}:{vm}/layer"),
    ]
    return [image, hello, layer], steps


def loop_devices(directory: Path) -> list[str]:
    """Return the loop devices over files below `directory`."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(f"{directory}/"):
                found.append(path.parts[3])
    return found
