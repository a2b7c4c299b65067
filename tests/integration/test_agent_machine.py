"""The agent as the first process of a machine: QEMU with the guest's own kernel."""

import errno
import os
import secrets
import shutil
import stat
import subprocess
import time

import pytest

from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore
from tests.integration.agent_process import REPOSITORY, pack
from tests.integration.machine import Machine

PIDS = 200
PIDS_MAX = 1 << 22
"""So many the kernel has numbers for."""
ROOT = ("layer=vda", "layer=vdb", "disk=vdc", f"pids={PIDS}")
AN_HOUR_S = 3600
ROUNDS = 10_000
"""When one in a thousand frames woke nobody, all of so many did only once in 20 000 runs."""

FORK_UNTIL_REFUSED = """
import os, signal
count = 1
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError as error:
    print(count, error.errno, flush=True)
signal.pause()
"""
CONNECT_TO_SELF = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
"""


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    """Image `standard`, and on it a layer that hides, replaces and adds a file."""
    folder = tmp_path_factory.mktemp("layers")
    build_standard(ImageStore(folder), REPOSITORY / "build/images", False, print)
    top = folder / "top"
    (top / "etc").mkdir(parents=True)
    top.chmod(0o751)
    os.mknod(top / "etc/debian_version", stat.S_IFCHR, os.makedev(0, 0))
    (top / "etc/motd").write_text("from the top\n")
    shutil.copy(shutil.which("id"), top / "as-root")
    (top / "as-root").chmod(0o4755)
    packed = folder / "top.squashfs"
    subprocess.run(["mksquashfs", top, packed, "-quiet", "-no-progress"], check=True)
    yield [*ImageStore(folder).get("standard").layers, packed]
    shutil.rmtree(folder)


def make_disk(folder):
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory, layers):
    """One that has its root, and whose processes no test leaves running."""
    folder = tmp_path_factory.mktemp("machine")
    with Machine(folder, make_disk(folder), layers) as machine:
        machine.boot()
        machine.must("root", *ROOT)
        yield machine
    shutil.rmtree(folder)


def test_every_frame_wakes_the_agent(machine):
    for _ in range(ROUNDS):
        # Refused at once: little but the way there and back.
        assert machine.ended(machine.open(pack("nothing"))).end


def mounts_of(machine):
    lines = [line.split() for line in machine.sh("cat /proc/mounts").splitlines()]
    return {line[1]: (line[2], set(line[3].split(","))) for line in lines}


class TestRoot:
    def test_shows_all_layers_as_one(self, machine):
        assert machine.sh("cat /etc/motd") == "from the top\n"
        machine.sh("test ! -e /etc/debian_version && test -e /etc/passwd")

    def test_looks_as_the_topmost_layer_does(self, machine):
        assert machine.sh("stat -c %a:%u:%g /") == "751:0:0\n"

    def test_is_all_that_there_is_of_files(self, machine):
        machine.sh("test ! -e /init && test ! -e /modules && test ! -e /layers")
        kinds = {place: kind for place, (kind, _) in mounts_of(machine).items()}
        # An identity, which other tests give, is bound over its files.
        assert {place: kinds[place] for place in kinds if not place.startswith("/etc/")} == {
            "/": "overlay",
            "/dev": "devtmpfs",
            "/dev/pts": "devpts",
            "/dev/shm": "tmpfs",
            "/proc": "proc",
            "/run/mags": "tmpfs",
            "/sys": "sysfs",
            "/uploads": "tmpfs",
        }

    def test_shows_uploads_that_are_no_part_of_the_disk(self, machine):
        machine.sh("echo content > '/root/a b' && touch /uploads/mine")
        assert not list(machine.must("uploads", "name=a b").fields.all("absent"))
        assert machine.sh("cat '/uploads/a b'") == "content\n"
        assert machine.sh("stat -c %d /uploads") == machine.sh("stat -c %d /run/mags")
        machine.sh("rm '/root/a b' /uploads/mine '/uploads/a b'")

    def test_runs_suid_programs_of_layers_and_of_the_disk(self, machine):
        machine.sh("cp -p /as-root /root/as-root")
        for program in ("/as-root", "/root/as-root"):
            machine.sh("chmod 755 /root")
            as_nobody = f"setpriv --reuid=65534 --regid=65534 --clear-groups {program} -u"
            assert machine.sh(as_nobody) == "0\n"

    def test_only_the_root_itself_may_hold_them(self, machine):
        for place, (_, options) in mounts_of(machine).items():
            assert ("nosuid" in options) is (place != "/"), place

    def test_has_devices_and_terminals(self, machine):
        machine.sh("echo x > /dev/null && head -c 8 /dev/zero /dev/urandom > /dev/shm/bytes")
        machine.sh("echo x | grep -q x /dev/fd/0 && echo x | grep -q x /dev/stdin")
        machine.sh("python3 -c 'import os; os.write(os.openpty()[1], b\"x\")'")
        assert machine.sh("stat -c %a /dev/shm /dev/ptmx") == "1777\n666\n"

    def test_has_limits_as_in_other_sandboxes(self, machine):
        assert machine.sh("ulimit -Sn; ulimit -Hn; ulimit -c").split() == ["65536", "1048576", "0"]

    @pytest.mark.parametrize("what", ["root", "layers"])
    def test_is_made_once(self, machine, what):
        assert machine.control(what, *ROOT).value == errno.EALREADY
        assert machine.control(what).value == errno.EALREADY

    def test_runs_programs_as_elsewhere(self, machine):
        data = secrets.token_bytes(1 << 20)
        stream = machine.exec(["cat"], "stdin=open")
        machine.write(stream, data)
        machine.write_eof(stream)
        assert machine.ended(stream).out == data
        assert machine.run(["no-such-program"]).end.value == 127 << 8
        machine.wait_for_processes(0)


class TestCrowd:
    def test_a_fork_bomb_is_refused_and_the_agent_is_not(self, machine):
        machine.wait_for_processes(0)
        bomb = machine.exec(["python3", "-c", FORK_UNTIL_REFUSED])
        machine.wait(lambda: bomb.out.endswith(b"\n") or bomb.end)
        assert bomb.out.split() == [b"%d" % PIDS, b"%d" % errno.EAGAIN], bomb.err
        assert machine.processes() == PIDS
        assert machine.sh("echo still here") == "still here\n"
        assert machine.run(["sh", "-c", "(true)"]).end.value != 0
        assert machine.sh("kill -9 -1") == ""
        machine.wait_for_processes(0)
        machine.sh("(true)")


class TestNetwork:
    def test_its_own_addresses_work(self, machine):
        assert machine.run(["python3", "-c", CONNECT_TO_SELF]).end.value == 0

    def test_an_address_with_a_way_out(self, machine):
        for _ in range(2):
            machine.must("network", "address=10.0.2.15/24", "gateway=10.0.2.2")
            assert "inet 10.0.2.15/24" in machine.sh("ip -4 address show up dev eth0")
            routes = machine.sh("ip route").splitlines()
            assert len(routes) == 2
            assert routes[0].startswith("default via 10.0.2.2 dev eth0")
            assert routes[1].startswith("10.0.2.0/24 dev eth0")

    def test_another_one_takes_the_place_of_the_first(self, machine):
        machine.must("network", "address=10.0.2.15/24", "gateway=10.0.2.2")
        machine.must("network", "address=10.1.0.7/16")
        addresses = machine.sh("ip -4 address show up dev eth0")
        assert "inet 10.1.0.7/16" in addresses
        assert "10.0.2.15" not in addresses
        assert "default" not in machine.sh("ip route")

    def test_none(self, machine):
        machine.must("network", "address=10.0.2.15/24", "gateway=10.0.2.2")
        for _ in range(2):
            machine.must("network")
            assert (
                machine.sh("ip route; ip -4 address show dev eth0; ip link show up dev eth0") == ""
            )

    @pytest.mark.parametrize(
        "fields",
        [
            ["address=10.0.2.15"],
            ["address=10.0.2.15/"],
            ["address=10.0.2.15/0"],
            ["address=10.0.2.15/33"],
            ["address=10.0.2.15/24x"],
            ["address=10.0.2/24"],
            ["address=/24"],
            ["address=fe80::1/64"],
            ["address=10.0.2.15/24", "gateway=10.0.2"],
            ["address=10.0.2.15/24", "gateway="],
            ["gateway=10.0.2.2"],
        ],
    )
    def test_what_is_no_address_is_refused(self, machine, fields):
        assert machine.control("network", *fields).value == errno.EINVAL


class TestIdentity:
    def test_nothing_is_left_to_the_host(self, machine):
        at_s = int(time.time()) + AN_HOUR_S
        identity = machine.must(
            "identity",
            "hostname=one-of-many",
            f"machine_id={'0123456789abcdef' * 2}",
            f"clock_ns={at_s * 10**9}",
            f"entropy={secrets.token_hex(64)}",
        )
        assert not list(identity.fields.all("kept"))
        assert not list(identity.fields.all("absent"))
        assert machine.sh("hostname; cat /etc/hostname") == "one-of-many\n" * 2
        assert machine.sh("cat /etc/machine-id") == "0123456789abcdef" * 2 + "\n"
        assert 0 <= int(machine.sh("date +%s")) - at_s < AN_HOUR_S

    @pytest.mark.parametrize("field", ["entropy=0", "entropy=xx", "clock_ns=x", "clock_ns=-1"])
    def test_what_is_malformed_is_an_error(self, machine, field):
        assert machine.control("identity", field).value == errno.EINVAL


class TestLife:
    def test_words_that_make_no_root_are_refused_and_the_right_ones_work(self, tmp_path, layers):
        disk = make_disk(tmp_path)
        with Machine(tmp_path, disk, layers) as machine:
            machine.boot()
            for name in ("vd", "sda", "vd1", "vda1", "vd/a", "../vda", "vda:", "vdabcdefgh", ""):
                assert machine.control("layers", f"layer={name}").value == errno.EINVAL
                assert machine.control("layers", "layer=vda", f"layer={name}").value == errno.EINVAL
                assert (
                    machine.control("root", ROOT[0], f"disk={name}", ROOT[3]).value == errno.EINVAL
                )
            for pids in ("", "0", "-1", "x", "7x", f"{PIDS_MAX + 1}", "99999999999999999999"):
                assert machine.control("root", *ROOT[:3], f"pids={pids}").value == errno.EINVAL
            for fields in ((), ROOT[1:2], ROOT[:3], (*ROOT[:2], ROOT[3]), ROOT[2:]):
                assert machine.control("root", *fields).value == errno.EINVAL
            assert machine.control("layers").value == errno.EINVAL
            missing = machine.control("layers", "layer=vda", "layer=vdx")
            assert missing.value == errno.ENOENT
            assert missing.fields.get("failed") == "/layers/vdx"
            not_squashfs = machine.control("layers", "layer=vdc")
            assert not_squashfs.value == errno.EINVAL
            assert not_squashfs.fields.get("failed") == "/layers/vdc"
            assert machine.control("root", *ROOT[:2], "disk=vdx", ROOT[3]).value == errno.ENOENT
            for _ in range(2):
                machine.must("layers", "layer=vda", "layer=vdb")
            machine.must("root", *ROOT[:3], f"pids={PIDS_MAX}")
            machine.sh(f"test $(cat /proc/sys/kernel/pid_max) = {PIDS_MAX}")
            machine.sh(f"test $(cat /proc/sys/kernel/threads-max) -gt {PIDS_MAX}")
            machine.sh("echo kept > /etc/kept; rm /etc/motd; sleep 1000 & exit 0")
            machine.must("poweroff")
            machine.wait_for_end()
            assert machine.process.returncode == 0
        assert debugfs(disk, "cat /upper/etc/kept") == "kept\n"
        assert "Type: character special" in debugfs(disk, "stat /upper/etc/motd")

    def test_it_ends_with_its_link(self, tmp_path):
        with Machine(tmp_path, make_disk(tmp_path)) as machine:
            machine.boot()
            machine.must("network", "address=10.0.2.15/24")
            machine.socket.close()
            assert machine.process.wait(20) == 0

    def test_it_ends_at_an_offence(self, tmp_path):
        with Machine(tmp_path, make_disk(tmp_path)) as machine:
            machine.boot()
            machine.socket.sendall(b"no frame" * 100)
            machine.wait_for_end()
            assert machine.process.returncode == 0


def debugfs(disk, command):
    done = subprocess.run(
        ["debugfs", "-R", command, disk], capture_output=True, text=True, check=True
    )
    return done.stdout
