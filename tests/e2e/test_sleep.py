"""Jobs that nobody uses sleep and are woken: on gVisor and in microVMs, whoever is killed between.

With microVMs what is theirs alone is tried, and all of it with `MAGS_TEST_FULL=1`.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.engines import ENGINES, serving_on
from tests.e2e.server import Server, eventually
from tests.e2e.test_live import asked, keep, printed, stop

WOKEN = {"gvisor": "started from its own disk", "qemu": "resumed from memory"}
SETTINGS = {"MAGSD_MIN_IDLE_TIMEOUT_S": "1"}
IS_FULL = os.environ.get("MAGS_TEST_FULL") == "1"
CYCLES = 20 if IS_FULL else 2


@pytest.fixture(scope="module", params=ENGINES if IS_FULL else ENGINES[:1])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One for each engine; nothing may be left of it in the end."""
    with serving_on(request.param, tmp_path_factory.mktemp("sleep"), **SETTINGS) as running:
        yield running


def asleep(server: Server, job: str) -> dict[str, Any]:
    """Return the status of a job once it sleeps."""

    def check() -> dict[str, Any] | None:
        status = server.status(job)
        assert status["status"] in ("running", "sleeping"), status
        return status if status["sleeping"] else None

    return dict(eventually(check, 60, f"{job} sleeps"))


def lines(server: Server, job: str) -> list[str]:
    return [entry["message"] for entry in server.log_entries(job)]


def shims(server: Server) -> list[str]:
    """Return the VMs whose shim lives."""
    return [path.parent.name for path in (server.data / "run").glob("*/sock")]


def test_it_sleeps_when_nobody_uses_it_and_a_command_wakes_it(server: Server) -> None:
    status = keep(
        server,
        "echo begun; echo mine > /root/file; chmod 600 /root/file; sleep infinity",
        idle_timeout=1,
        environment={"WHO": "its own"},
        startup_command="echo $WHO > /root/started; echo started in $PWD",
    )
    job = status["request_id"]
    now = asleep(server, job)
    assert (now["status"], now["sleeping"], now["exit_code"]) == ("sleeping", True, 143)
    assert status["vm_id"] not in shims(server)
    with server.http() as http:
        listed = http.get("/mags-jobs").json()["jobs"]
        told = http.get("/mags-jobs/pool-status").json()
    assert [each["status"] for each in listed if each["request_id"] == job] == ["sleeping"]
    assert told["busy_vms"] == 0
    command = "cat /root/file; stat -c %a /root/file; until cat /root/started; do sleep 0.1; done"
    assert printed(server, job, command) == "mine\n600\nits own\n"
    again = server.status(job)
    assert (again["status"], again["sleeping"]) == ("running", False)
    assert printed(server, job, "pgrep -x sleep; hostname").splitlines() == [
        f"mags-{status['vm_id']}"
    ]
    wanted = [
        "begun",
        "the job went to sleep, and its script was ended",
        "started from its own disk",
        "started in /root",
    ]
    eventually(lambda: lines(server, job)[:4] == wanted, what=str(lines(server, job)))
    asleep(server, job)
    ended = stop(server, job)
    assert (ended["status"], ended["exit_code"]) == ("completed", 143)
    assert asked(server, job, "true").status_code == 409


def test_its_disk_is_the_same_cycle_after_cycle(server: Server) -> None:
    job = keep(server, idle_timeout=1, file_ids=[uploaded(server)])["request_id"]
    printed(server, job, "rm -r /var/log/*; mkdir -p /data; rm /root/notes.txt; echo x > /root/n")
    for number in range(CYCLES):
        printed(
            server,
            job,
            f"cd /data && head -c 3000000 /dev/urandom > {number} && ln {number} {number}.link && "
            f"ln -sf {number} last && sha256sum [0-9]* last > sums",
        )
        asleep(server, job)
        done = printed(server, job, "cd /data && sha256sum -c --quiet sums && ls /var/log | wc -l")
        assert done == "0\n"
        assert printed(server, job, "cat /root/n; test ! -e /root/notes.txt && ls /uploads") == (
            "x\nnotes.txt\n"
        )
    stop(server, job)


def uploaded(server: Server) -> str:
    with server.http() as http:
        reply = http.post("/mags-files", files={"file": ("notes.txt", b"of before")})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["file_id"])


def test_what_it_changed_is_a_version_while_it_sleeps(server: Server) -> None:
    job = keep(server, "echo one > /root/one", workspace_id="slept", idle_timeout=1)["request_id"]
    assert asleep(server, job)["workspace_synced"] is True
    other = server.run("cat /root/one", base_workspace_id="slept")
    assert other["stdout"] == ["one"]
    printed(server, job, "echo two > /root/two")
    asleep(server, job)
    with server.http() as http:
        synced = http.post(f"/mags-jobs/{job}/sync")
        refused = http.delete("/mags-workspaces/slept")
    assert (synced.status_code, synced.json()["version"]) == (200, 2)
    assert refused.status_code == 409
    assert stop(server, job)["workspace_synced"] is True
    assert server.run("cat /root/one /root/two", workspace_id="slept")["stdout"] == ["one", "two"]


def test_a_full_disk_sleeps_and_wakes(server: Server) -> None:
    job = keep(server, disk_gb=1, idle_timeout=1)["request_id"]
    fill = "fallocate -l 850M /root/big; head -c 300000000 /dev/zero > /root/full"
    assert asked(server, job, fill, timeout=120).json()["exit_code"] == 1
    asleep(server, job)
    freed = "rm /root/big /root/full; echo kept > /root/kept; cat /root/kept"
    assert printed(server, job, freed) == "kept\n"
    stop(server, job)


def test_many_at_once_cause_one_wake(server: Server) -> None:
    job = keep(server, idle_timeout=1)["request_id"]
    asleep(server, job)
    with ThreadPoolExecutor(50) as threads:
        found = list(threads.map(lambda _: printed(server, job, "echo here"), range(50)))
    assert set(found) == {"here\n"}
    assert lines(server, job)[-1] == WOKEN[server.status(job)["engine"]]
    assert len(lines(server, job)) == 2
    stop(server, job)


def test_what_computes_does_not_sleep(server: Server) -> None:
    busy = keep(server, "while :; do :; done", idle_timeout=1)["request_id"]
    idle = keep(server, "sleep infinity", idle_timeout=1)["request_id"]
    asleep(server, idle)
    assert server.status(busy)["status"] == "running"
    stop(server, idle)
    stop(server, busy)


def test_a_microvm_goes_on_where_it_was(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its script too, and what it says afterwards is in the log."""
    with serving_on("qemu", tmp_path_factory.mktemp("warm"), **SETTINGS) as server:
        script = "echo begun; mkfifo /run/pipe; read word < /run/pipe; echo $word; exit 5"
        job = keep(server, script, idle_timeout=1, workspace_id="warm")["request_id"]
        printed(server, job, "sleep 4321 > /dev/null 2>&1 & echo $! > /run/pid; echo a > /root/a")
        for number in range(CYCLES):
            now = asleep(server, job)
            assert (now["script_ended_at"], now["workspace_synced"]) == (None, True)
            assert printed(server, job, "cat /root/a; ps -o args= -p $(cat /run/pid)") == (
                f"a{number or ''}\nsleep 4321\n"
            )
            printed(server, job, f"echo a{number + 1} > /root/a")
            assert server.status(job)["status"] == "running"
        printed(server, job, "echo word > /run/pipe")
        eventually(lambda: server.status(job)["script_ended_at"])
        assert server.status(job)["exit_code"] == 5
        slept = ["the job went to sleep", "resumed from memory"]
        assert lines(server, job) == ["begun", *slept * CYCLES, "word"]
        asleep(server, job)
        server.kill()
        server.start()
        assert printed(server, job, "cat /root/a; cat /run/pid | wc -l") == f"a{CYCLES}\n1\n"
        asleep(server, job)
        assert list((server.data / "snapshots").iterdir())
        assert stop(server, job)["workspace_synced"] is True
        assert server.run("cat /root/a", workspace_id="warm")["stdout"] == [f"a{CYCLES}"]
        eventually(lambda: not list((server.data / "snapshots").iterdir()))


def test_a_memory_that_is_damaged_costs_nothing_but_the_memory(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with serving_on("qemu", tmp_path_factory.mktemp("damaged"), **SETTINGS) as server:
        job = keep(server, "sleep infinity", idle_timeout=1)["request_id"]
        printed(server, job, "echo mine > /root/file")
        asleep(server, job)
        (snapshot,) = (server.data / "snapshots").iterdir()
        with (snapshot / "memory").open("r+b") as memory:
            memory.truncate(4096)
        assert printed(server, job, "cat /root/file") == "mine\n"
        last = lines(server, job)[-1]
        assert last.startswith("started from its own disk, not from memory (")
        assert last.endswith("its script was ended")
        assert server.status(job)["exit_code"] == 143
        stop(server, job)


@pytest.mark.parametrize("engine", ENGINES if IS_FULL else ENGINES[:1])
def test_daemons_are_killed_at_any_moment_and_it_is_woken_all_the_same(
    engine: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    order = random.Random(engine)
    with serving_on(engine, tmp_path_factory.mktemp("killed"), **SETTINGS) as server:
        job = keep(server, "sleep infinity", idle_timeout=1, workspace_id="lasting")["request_id"]
        printed(server, job, "head -c 1000000 /dev/urandom > /root/data")
        sums = printed(server, job, "sha256sum /root/data")
        for number in range(CYCLES):
            if number % 2:
                asleep(server, job)
                threads = ThreadPoolExecutor(1)
                waiting = threads.submit(_try, server, job)
            else:
                threads, waiting = None, None
                _pause(order.uniform(1, 4))  # It falls asleep about now.
            _pause(order.uniform(0, 0.4))
            server.kill()
            if threads is not None:
                waiting.exception()
                threads.shutdown()
            server.start()
            assert printed(server, job, "sha256sum /root/data") == sums
        ended = stop(server, job)
        assert (ended["status"], ended["workspace_synced"]) == ("completed", True)
        assert server.run("sha256sum /root/data", workspace_id="lasting")["stdout"] == [
            sums.strip()
        ]


def _try(server: Server, job: str) -> None:
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/exec", json={"command": "true"})


def _pause(seconds: float) -> None:
    """Let a moment go by, for a kill to come at another point each time."""
    time.sleep(seconds)


def test_a_host_that_was_restarted(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving_on("gvisor", tmp_path_factory.mktemp("host"), **SETTINGS) as server:
        status = keep(server, "sleep infinity")
        awake = keep(server, "sleep infinity", no_sleep=True)
        for each in (status, awake):
            printed(server, each["request_id"], "echo mine > /root/file; sync")
        _restart_host(server, [status, awake])
        now = asleep(server, status["request_id"])
        assert (now["restored_from"], now["exit_code"]) == ("local", 137)
        for each in (status, awake):
            job = each["request_id"]
            eventually(lambda job=job: server.status(job)["status"] in ("running", "sleeping"))
            assert printed(server, job, "cat /root/file") == "mine\n"
            assert server.status(job)["restored_from"] == "local"
            stop(server, job)


def _restart_host(server: Server, vms: list[dict[str, Any]]) -> None:
    """Do to a service what a restart of its host does."""
    server.kill()
    for status in vms:
        record = server.data / "run" / status["vm_id"] / "record.json"
        os.kill(server.vm_pid(status), signal.SIGKILL)
        eventually(lambda status=status: not _lives(server.vm_pid(status)))
        text = record.read_text()
        record.write_text(json.dumps({**json.loads(text), "boot_id": "of before"}))
    server.start()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
