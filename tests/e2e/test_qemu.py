"""The daemon whose jobs get microVMs: each with a Linux kernel of its own."""

import hashlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from magsd.doctor import leftovers
from magsd.engine.network import instance_of
from magsd.storage.kernel_package import install_kernel
from tests import census
from tests.e2e.pool_census import at_rest, waiting_vms, wanted_vms
from tests.e2e.server import MAGSD, REPOSITORY, Server, eventually
from tests.mirror import mirror

_SECRETS = """\
hostname
cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
od -An -N16 -tx1 /dev/urandom
"""
_LINES = 40
_COUNT = f"for n in $(seq {_LINES}); do echo $n; sleep 0.1; done; exit 7"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all, which each test leaves running; nothing may be left of it in the end."""
    own = Server(tmp_path_factory.mktemp("qemu"), MAGSD_ENGINE="qemu", MAGSD_ACCELERATOR="tcg")
    before = census.take(own.data)
    own.add_image()
    install_kernel(own.data, REPOSITORY / "build/kernel", lambda _: None)
    try:
        own.start()
        yield own
        at_rest(own)
    finally:
        own.stop()
    census.assert_same(before, own.data)
    instance = instance_of(own.data)
    assert not [left for left in leftovers.find(own.data) if left.instance == instance]


def _full(server: Server) -> set[str]:
    """Return the names of the VMs that wait once all do."""

    def check() -> set[str]:
        found = waiting_vms(server)
        return found if len(found) >= wanted_vms(server) else set()

    return set(eventually(check, 60, "the pool is full"))


def _stop(server: Server, job: str) -> dict[str, Any]:
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/stop").raise_for_status()
    return server.final(job)


def test_a_job_gets_a_microvm_that_waits(server: Server) -> None:
    waiting = _full(server)
    done = server.run("hostname; id -u; grep -c Debian /proc/version; echo oops >&2; exit 3")
    assert (done["engine"], done["isolation"]) == ("qemu", "microvm")
    assert (done["status"], done["exit_code"]) == ("error", 3)
    assert done["stdout"] == [f"mags-{done['vm_id']}", "0", "1"]
    assert ("stderr", "oops") in {(entry["source"], entry["message"]) for entry in done["log"]}
    assert done["vm_id"] in waiting
    assert done["vm_id"] not in _full(server)


def test_how_many_wait_and_work_is_told(server: Server) -> None:
    _full(server)
    job = server.submit("sleep 100")
    server.running(job)
    with server.http() as http:
        told = http.get("/mags-jobs/pool-status").json()
    assert told["busy_vms"] == 1
    assert told["total_vms"] == told["idle_vms"] + told["busy_vms"]
    assert _stop(server, job)["code"] == "stopped"


def test_none_is_like_another(server: Server) -> None:
    _full(server)
    # More than have waited; all went on from one saved machine.
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(server.run, [_SECRETS] * 4))
    lines = [line for one in done for line in one["stdout"]]
    assert len(lines) == len(set(lines)) == 4 * 5


@pytest.mark.network
def test_it_reaches_the_outside_and_not_the_host(server: Server) -> None:
    done = server.run(
        f"curl -sSf -o /dev/null {mirror().file} 2>&1 && echo outside\n"
        f"for host in {server.slot_net}.1 10.0.2.2 127.0.0.1; do\n"
        f"  curl -s -o /dev/null -m 2 http://$host:{server.port}/ && echo reached $host\n"
        "done; true"
    )
    assert done["stdout"] == ["outside"], done


def test_a_job_may_choose_gvisor_beside_it(server: Server) -> None:
    job = server.submit("echo up; sleep 600")
    server.running(job)
    done = server.run("grep -c 4.4.0 /proc/version", engine="gvisor")
    assert (done["engine"], done["isolation"]) == ("gvisor", "application-kernel")
    assert done["stdout"] == ["1"]
    stopped = _stop(server, job)
    assert (stopped["engine"], stopped["code"]) == ("qemu", "stopped")


@pytest.mark.parametrize("end", [Server.stop, Server.kill], ids=["stopped", "killed"])
def test_a_job_outlives_the_daemon(server: Server, end) -> None:
    job = server.submit(_COUNT)
    vm = server.running(job)["vm_id"]
    eventually(lambda: server.stdout(job))
    waiting = _full(server)
    end(server)
    server.start()
    status = server.final(job)
    assert (status["vm_id"], status["exit_code"], status["code"]) == (vm, 7, "script_failed")
    assert server.stdout(job) == [str(n) for n in range(1, _LINES + 1)]
    assert not _full(server) & waiting
    assert server.run("echo fine")["stdout"] == ["fine"]


def _exec(server: Server, job: str, command: str, **fields: Any) -> dict[str, Any]:
    with server.http() as http:
        reply = http.post(f"/mags-jobs/{job}/exec", json={"command": command, **fields})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_a_vm_that_stays_takes_commands_whatever_becomes_of_the_daemon(server: Server) -> None:
    job = server.submit("echo mine > /root/file; exit 3", persistent=True, workspace_id="lasting")
    vm = server.running(job)["vm_id"]
    assert _exec(server, job, "hostname")["stdout"] == f"mags-{vm}\n"
    server.kill()
    server.start()
    status = server.running(job)
    assert (status["vm_id"], status["exit_code"]) == (vm, 3)
    done = _exec(server, job, "cat /root/file; echo more > /root/more; exit 4")
    assert (done["exit_code"], done["stdout"]) == (4, "mine\n")
    done = _exec(server, job, "echo so far; sleep 1234 & sleep 1234", timeout=1)
    assert (done["exit_code"], done["stdout"]) == (124, "so far\n")
    assert _exec(server, job, "pgrep -f '[s]leep 1234'")["exit_code"] == 1
    done = _exec(server, job, "head -c 20000000 /dev/zero", timeout=60)
    assert (done["truncated"], len(done["stdout"])) == (True, 4 << 20)
    with ThreadPoolExecutor(20) as threads:
        many = list(threads.map(lambda n: _exec(server, job, f"echo {n}", timeout=60), range(20)))
    assert [one["stdout"] for one in many] == [f"{n}\n" for n in range(20)]
    stopped = _stop(server, job)
    assert (stopped["status"], stopped["exit_code"]) == ("completed", 3)
    done = server.run("cat /root/file /root/more", workspace_id="lasting")
    assert done["stdout"] == ["mine", "more"]


def test_limits_hold(server: Server) -> None:
    hog = "awk 'BEGIN { x = \"x\"; while (i++ < 20) x = x x; for (;;) a[n++] = x n }'"
    done = server.run(f"{hog}; echo $?; echo fine", memory_mb=128)
    assert (done["status"], done["stdout"]) == ("completed", ["137", "fine"])
    done = server.run("echo begun; sleep 600", timeout=1)
    assert (done["code"], done["exit_code"], done["stdout"]) == ("timeout", 124, ["begun"])


def test_the_doctor_finds_this_machine_well(server: Server) -> None:
    told = subprocess.run(
        [MAGSD, "doctor"],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_script_finds_its_files(server: Server) -> None:
    content = bytes(range(256)) * 40_000
    with server.http() as http:
        reply = http.post("/mags-files", files={"file": ("data", content)})
    waiting = _full(server)
    script = "sha256sum < /uploads/data | cut -d' ' -f1; readlink /uploads/data"
    done = server.run(script, file_ids=[reply.json()["file_id"]])
    assert done["stdout"] == [hashlib.sha256(content).hexdigest(), "/root/data"]
    assert done["vm_id"] in waiting
