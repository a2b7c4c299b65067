"""Parts that die, and what is left and said afterwards."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import census
from tests.e2e.server import MAGSD, Server, eventually, serving

_COUNT = """
python3 -u -c '
import time
for n in range({lines}):
    print(n)
    time.sleep(0.001)
'
exit 7
"""


def test_the_daemon_is_killed_and_the_script_goes_on(own_server: Server) -> None:
    job = own_server.submit(_COUNT.format(lines=8000))
    own_server.running(job)
    eventually(lambda: len(own_server.stdout(job)) > 100)
    own_server.kill()
    time.sleep(5)  # What is tested: a service that is down for a while.
    own_server.start()
    status = own_server.final(job, 120)
    assert (status["exit_code"], status["code"]) == (7, "script_failed")
    assert own_server.stdout(job) == [str(n) for n in range(8000)]


def test_the_script_ends_while_the_daemon_is_down(own_server: Server) -> None:
    job = own_server.submit(_COUNT.format(lines=1500))
    pid = own_server.vm_pid(own_server.running(job))
    own_server.kill()
    state = own_server.data / "run"
    assert state.is_dir()
    time.sleep(5)
    assert Path(f"/proc/{pid}").exists()
    own_server.start()
    status = own_server.final(job, 60)
    assert (status["exit_code"], status["code"]) == (7, "script_failed")
    assert own_server.stdout(job) == [str(n) for n in range(1500)]


def test_the_daemon_is_killed_again_and_again(own_server: Server) -> None:
    jobs = [own_server.submit(f"for i in $(seq 300); do echo $i; sleep 0.05; done; exit {n}")
            for n in range(3)]  # fmt: skip
    for _ in range(3):
        own_server.kill()
        own_server.start()
    for n, job in enumerate(jobs):
        assert own_server.final(job, 120)["exit_code"] == n
        assert own_server.stdout(job) == [str(i) for i in range(1, 301)]


def _descendants(pid: int) -> dict[int, str]:
    found: dict[int, str] = {}
    parents = [pid]
    while parents:
        listing = Path(f"/proc/{parents.pop()}/task").glob("*/children")
        for child in (int(word) for path in listing for word in path.read_text().split()):
            found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            parents.append(child)
    return found


def _engine(shim: int, word: str) -> int:
    return next(pid for pid, command in _descendants(shim).items() if word in command)


@pytest.mark.parametrize(
    ("victim", "code"),
    [
        (lambda shim: shim, "shim_died"),
        (lambda shim: _engine(shim, " run "), "engine_died"),
        (lambda shim: _engine(shim, " boot "), "engine_died"),
    ],
    ids=["shim", "runsc", "sentry"],
)
@pytest.mark.usefixtures("nothing_left")
def test_a_part_of_the_vm_is_killed(
    server: Server, victim: Callable[[int], int], code: str
) -> None:
    job = server.submit("echo up; sleep 600")
    status = server.running(job)
    eventually(lambda: "up" in server.stdout(job))
    os.kill(victim(server.vm_pid(status)), signal.SIGKILL)
    status = server.final(job, 10)
    assert (status["status"], status["code"], status["exit_code"]) == ("error", code, 137)
    assert server.stdout(job) == ["up"]


@pytest.mark.usefixtures("nothing_left")
def test_the_agent_is_killed_from_inside(server: Server) -> None:
    done = server.run("echo up; sleep 0.2; kill -9 1; sleep 600", within_s=20)
    assert (done["status"], done["code"], done["exit_code"]) == ("error", "agent_died", 137)
    assert done["stdout"] == ["up"]


def test_a_fork_bomb_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bomb")
    before = census.take(folder / "data")
    with serving(folder, MAGSD_PIDS_LIMIT="400") as server:
        script = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(600)"
        done = server.run(f"python3 -c '{script}'", within_s=90, memory_mb=4096)
        assert (done["status"], done["code"], done["exit_code"]) == (
            "error",
            "too_many_processes",
            137,
        )
        assert server.run("echo fine")["stdout"] == ["fine"]
    census.assert_same(before, folder / "data")


def test_two_daemons_on_one_data_directory(own_server: Server) -> None:
    second = subprocess.run(
        [MAGSD, "serve"],
        env={**own_server.environment, "MAGSD_API_BIND": "127.0.0.1:0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert str(own_server.data) in second.stderr
    assert "Traceback" not in second.stderr
    assert own_server.run("echo fine")["stdout"] == ["fine"]


def test_a_damaged_image(tmp_path: Path) -> None:
    # A VM that waited since before the damage would serve, and rightly so.
    with serving(tmp_path, MAGSD_POOL_MIN="0", MAGSD_POOL_MAX="0") as server:
        layer = next((server.data / "layers").glob("*.sqfs"))
        damaged = layer.with_suffix(".damaged")
        shutil.copyfile(layer, damaged)
        with damaged.open("r+b") as file:
            file.seek(damaged.stat().st_size // 2)
            file.write(b"\0" * 4096)
        damaged.replace(layer)
        done = server.run("echo never")
        assert (done["status"], done["code"], done["exit_code"]) == ("error", "image_damaged", None)
        assert "magsd image build standard" in done["error"]
        server.add_image()
        assert server.run("echo again")["stdout"] == ["again"]


@contextmanager
def _small_disk() -> Iterator[Path]:
    """A filesystem of 400 MB in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="mags-test-", dir="/var/tmp") as work:
        folder, disk = Path(work) / "data", Path(work) / "disk.ext4"
        folder.mkdir()
        with disk.open("wb") as file:
            file.truncate(400 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, folder], check=True)
        try:
            yield folder
        finally:
            eventually(lambda: subprocess.run(["umount", folder], check=False).returncode == 0)


@contextmanager
def _counted(data: Path) -> Iterator[None]:
    before = census.take(data)
    yield
    census.assert_same(before, data)


def _serving(folder: Path) -> AbstractContextManager[Server]:
    """Serve from a disk that is smaller than what jobs ask for, and may be filled."""
    return serving(folder, MAGSD_DISK_OVERCOMMIT="100", MAGSD_DISK_FREE_MIN_GB="0")


def _fill(path: Path) -> None:
    with path.open("wb", 0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(path).f_bavail < 8


def test_the_hosts_disk_is_full() -> None:
    with _small_disk() as folder, _counted(folder / "data"), _serving(folder) as server:
        job = server.submit("echo up; while ! [ -e /go ]; do sleep 0.1; done")
        server.running(job)
        eventually(lambda: "up" in server.stdout(job))
        _fill(folder / "filler")
        with server.http() as http:
            reply = http.post("/mags-jobs", json={"script": "echo more"})
            if reply.status_code != 202:
                assert reply.status_code == 503, reply.text
                assert reply.json()["code"] == "capacity"
                assert "Retry-After" in reply.headers
            http.get(f"/mags-jobs/{job}/status").raise_for_status()
            (folder / "filler").unlink()
            eventually(lambda: http.post(f"/mags-jobs/{job}/stop").status_code == 200)
        assert server.final(job)["code"] in ("stopped", "host_disk_full")
        assert server.run("echo healed")["stdout"] == ["healed"]


def test_output_that_cannot_be_kept_ends_the_job() -> None:
    with _small_disk() as folder, _counted(folder / "data"), _serving(folder) as server:
        job = server.submit("echo up; sleep 2; while :; do echo 0123456789abcdef; done")
        pid = server.vm_pid(server.running(job))
        eventually(lambda: "up" in server.stdout(job))
        _fill(folder / "filler")
        eventually(lambda: not Path(f"/proc/{pid}").exists(), what="the VM has ended")
        (folder / "filler").unlink()
        status = server.final(job)
        assert (status["status"], status["code"]) == ("error", "host_disk_full")
        assert "up" in server.stdout(job)


def test_a_clean_stop_leaves_scripts_running(own_server: Server) -> None:
    job = own_server.submit("echo up; while ! [ -e /go ]; do sleep 0.2; done")
    own_server.running(job)
    assert own_server.stop() == 0
    own_server.start()
    assert own_server.status(job)["status"] == "running"
    with own_server.http() as http:
        http.post(f"/mags-jobs/{job}/stop")
    assert own_server.final(job)["code"] == "stopped"
