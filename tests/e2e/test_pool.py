"""VMs that wait for scripts, in sandboxes: who gets them, what they know, what ends them."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import census, pooled
from tests.e2e.pool_census import at_rest, full_census, vms, waiting_vms, wanted_vms
from tests.e2e.server import Server, eventually, serving

_OTHER_SIZE = 700
"""MiB of memory that nobody else asks for, so that no VM waits."""


def _full(server: Server) -> set[str]:
    """Return the names of the VMs that wait once all do."""

    def check() -> set[str] | None:
        found = waiting_vms(server)
        return found if len(found) >= wanted_vms(server) else None

    return set(eventually(check, 60, "the pool is full"))


def _run_in_waiting(server: Server, script: str, **fields: Any) -> dict[str, Any]:
    waiting = _full(server)
    done = server.run(script, **fields)
    assert done["vm_id"] in waiting
    return done


def _shim(server: Server, vm: str) -> int:
    return int(json.loads((server.data / "run" / vm / "record.json").read_text())["shim_pid"])


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def _processes(server: Server, vm: str) -> list[str]:
    return [line for line in census.take(server.data).lines if "process" in line and vm in line]


def _at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    gate = threading.Barrier(len(calls))

    def call(one: Callable[[], Any]) -> Any:
        gate.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


@pytest.fixture
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose usual VM may have few processes and little disk."""
    folder = tmp_path_factory.mktemp("small")
    before = census.take(folder / "data")
    settings = {
        "MAGSD_PIDS_LIMIT": "300",
        "MAGSD_DEFAULT_DISK_GB": "1",
        "MAGSD_DEFAULT_MEMORY_MB": "2048",
    }
    with serving(folder, **settings) as running:
        yield running
        at_rest(running)
    census.assert_same(before, folder / "data")


# --- who gets them --------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
def test_a_job_gets_a_vm_that_waits_and_another_takes_its_place(server: Server) -> None:
    done = _run_in_waiting(
        server, "echo $GREETING from $(hostname)", environment={"GREETING": "hi"}
    )
    assert done["stdout"] == [f"hi from mags-{done['vm_id']}"]
    assert [entry["source"] for entry in done["log"]] == ["stdout"]
    assert done["vm_id"] not in _full(server)


@pytest.mark.usefixtures("nothing_left")
def test_how_many_wait_and_work_is_told(server: Server) -> None:
    _full(server)
    job = server.submit("sleep 100")
    server.running(job)
    with server.http() as http:

        def check() -> bool:
            told = http.get("/mags-jobs/pool-status").json()
            assert told["total_vms"] == told["idle_vms"] + told["busy_vms"]
            return bool(told["busy_vms"] == 1 and told["idle_vms"] >= told["min_pool_size"] == 2)

        eventually(check)
        http.post(f"/mags-jobs/{job}/stop").raise_for_status()
        eventually(lambda: http.get("/mags-jobs/pool-status").json()["busy_vms"] == 0)


@pytest.mark.usefixtures("nothing_left")
def test_a_hundred_jobs_at_once(server: Server) -> None:
    _full(server)
    jobs = _at_once([lambda n=n: server.submit(f"echo {n}; exit {n}") for n in range(100)])
    for number, job in enumerate(jobs):
        assert server.final(job, 180)["exit_code"] == number
        assert server.stdout(job) == [str(number)]
    assert len({server.status(job)["vm_id"] for job in jobs}) == 100


@pytest.mark.usefixtures("nothing_left")
def test_the_same_is_asked_for_at_once(server: Server) -> None:
    with server.http() as http:
        spec = {"script": "sleep 100"}
        key = {"Idempotency-Key": "at once"}
        replies = _at_once([lambda: http.post("/mags-jobs", json=spec, headers=key)] * 10)
        (job,) = {reply.json()["request_id"] for reply in replies}
        server.running(job)
        _at_once([lambda: http.post(f"/mags-jobs/{job}/stop").raise_for_status()] * 10)
        assert server.final(job)["code"] == "stopped"
        said = [entry["message"] for entry in server.log_entries(job, source="system")]
        assert said == ["the job was stopped"]
        token = http.post("/tokens", json={"name": "short-lived"}).json()["id"]
        deleted = _at_once([lambda: http.delete(f"/tokens/{token}").status_code] * 10)
        assert sorted(deleted) == [200, *[404] * 9]


# --- what they know -------------------------------------------------------------------

_IDENTITY = "hostname; cat /etc/machine-id; od -An -N16 -tx1 /dev/urandom"
_TRACES = (
    "ls -A /root /tmp /var/tmp /run /run/mags; ls /proc | grep -c '^[0-9]'; "
    "ls -l /proc/self/fd | wc -l; df --output=iused / /tmp | tail -n +2; env | sort"
)


@pytest.mark.usefixtures("nothing_left")
def test_each_is_another_one(server: Server) -> None:
    done = [_run_in_waiting(server, _IDENTITY) for _ in range(2)]
    for one in done:
        assert one["stdout"][0] == f"mags-{one['vm_id']}"
    assert all(len(set(lines)) == 2 for lines in zip(*(one["stdout"] for one in done), strict=True))


@pytest.mark.usefixtures("nothing_left")
def test_nothing_tells_that_one_has_waited(server: Server) -> None:
    launched = server.run(_TRACES, memory_mb=_OTHER_SIZE)
    waited = _run_in_waiting(server, _TRACES)
    assert waited["stdout"] == launched["stdout"]
    assert waited["log"][0]["message"] == launched["log"][0]["message"]


@pytest.mark.parametrize(
    ("script", "code", "exit_code"),
    [
        ("while :; do sleep 600 & done", "too_many_processes", 137),
        ("python3 -c 'x = bytearray(3 << 30); print(len(x))'", "out_of_memory", 137),
        (
            "dd if=/dev/zero of=/big bs=1M 2>&1 | grep -o 'No space left'; exit 3",
            "script_failed",
            3,
        ),
    ],
    ids=["processes", "memory", "disk"],
)
def test_limits_hold(small_server: Server, script: str, code: str, exit_code: int) -> None:
    waited = _run_in_waiting(small_server, script, within_s=120)
    launched = small_server.run(script, within_s=120, memory_mb=2000)
    for done in (waited, launched):
        assert (done["code"], done["exit_code"]) == (code, exit_code), done
    assert waited["stdout"] == launched["stdout"]
    assert _run_in_waiting(small_server, "echo fine")["stdout"] == ["fine"]


# --- what ends them -------------------------------------------------------------------


def test_they_end_with_the_daemon_and_a_job_goes_on(own_server: Server) -> None:
    job = own_server.submit("echo up; until [ -e /go ]; do sleep 0.1; done")
    running = own_server.running(job)
    waiting = _full(own_server)
    shims = {_shim(own_server, vm) for vm in waiting}
    own_server.kill()
    eventually(lambda: not any(map(_lives, shims)), 10, "waiting VMs are gone")
    eventually(lambda: not any(_processes(own_server, vm) for vm in waiting), 10)
    assert _lives(_shim(own_server, running["vm_id"]))
    own_server.start()
    assert own_server.status(job)["vm_id"] == running["vm_id"]
    assert not _full(own_server) & waiting
    with own_server.http() as http:
        http.post(f"/mags-jobs/{job}/stop").raise_for_status()
    assert own_server.final(job)["code"] == "stopped"


@pytest.mark.usefixtures("nothing_left")
def test_one_whose_shim_is_killed_is_replaced(server: Server) -> None:
    waiting = _full(server)
    for vm in waiting:
        os.kill(_shim(server, vm), signal.SIGKILL)
    for vm in waiting:
        eventually(lambda vm=vm: not (server.data / "run" / vm).exists(), what="it is removed")
        assert not _processes(server, vm)
    assert not _full(server) & waiting
    assert server.run("echo fine")["stdout"] == ["fine"]


def test_what_is_frozen_and_has_no_shim_goes_with_the_next_start(own_server: Server) -> None:
    waiting = _full(own_server)
    shims = [_shim(own_server, vm) for vm in waiting]
    # Neither lives to see to what the other leaves.
    os.kill(own_server.process.pid, signal.SIGSTOP)
    for shim in shims:
        os.kill(shim, signal.SIGKILL)
    own_server.kill()
    own_server.start()
    eventually(lambda: not any(_processes(own_server, vm) for vm in waiting), 10)
    assert not _full(own_server) & waiting
    disks = pooled.names(own_server.data)
    for vm in waiting:
        assert not (own_server.data / "run" / vm).exists()
        assert f"{vm}.ext4" not in disks
    assert own_server.run("echo fine")["stdout"] == ["fine"]


def test_a_clean_stop_leaves_none(own_server: Server) -> None:
    job = own_server.submit("echo up; until [ -e /go ]; do sleep 0.1; done")
    vm = own_server.running(job)["vm_id"]
    waiting = _full(own_server)
    assert own_server.stop() == 0
    assert vms(own_server) == {vm}
    assert not any(_processes(own_server, vm) for vm in waiting)
    assert _lives(_shim(own_server, vm))
    own_server.start()
    with own_server.http() as http:
        http.post(f"/mags-jobs/{job}/stop").raise_for_status()
    assert own_server.final(job)["code"] == "stopped"


# --- the census itself ----------------------------------------------------------------


def test_what_is_left_over_is_found_beside_waiting_vms(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "PATIENCE_S", 1.0)
    before = full_census(server)

    def left() -> str:
        return "\n".join(
            census.left_behind(before, server.data, waiting=lambda: waiting_vms(server))
        )

    assert left() == ""
    # A VM that the pool has forgotten.
    forgotten = server.data / "run" / "0badcafe"
    forgotten.mkdir()
    with subprocess.Popen(["sleep", "100"], cwd=forgotten) as process:
        assert "0badcafe" in left()
        process.kill()
    assert "0badcafe" in left()
    forgotten.rmdir()
    # Something that one of those that wait has and the others have not.
    extra = server.data / "run" / min(_full(server)) / "extra"
    extra.touch()
    assert "extra" in left()
    extra.unlink()
    # A job's VM, which came from the pool.
    job = server.submit("sleep 100")
    vm = server.running(job)["vm_id"]
    assert vm in left()
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/stop").raise_for_status()
    monkeypatch.undo()
    census.assert_same(before, server.data, lambda: waiting_vms(server))
