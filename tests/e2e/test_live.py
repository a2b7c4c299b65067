"""Jobs whose VM stays, and commands in VMs that run: on gVisor, whoever is killed between."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server, eventually


def keep(server: Server, script: str = "true", **fields: Any) -> dict[str, Any]:
    """Return the status of a persistent job that runs."""
    return server.running(server.submit(script, persistent=True, **fields))


def asked(server: Server, job: str, command: str, **fields: Any) -> httpx.Response:
    with server.http() as http:
        return http.post(f"/mags-jobs/{job}/exec", json={"command": command, **fields})


def execute(server: Server, job: str, command: str, **fields: Any) -> dict[str, Any]:
    reply = asked(server, job, command, **fields)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def printed(server: Server, job: str, command: str, **fields: Any) -> str:
    done = execute(server, job, command, **fields)
    assert done["exit_code"] == 0, done
    return str(done["stdout"])


def stop(server: Server, job: str) -> dict[str, Any]:
    with server.http() as http:
        reply = http.post(f"/mags-jobs/{job}/stop")
    assert reply.status_code == 200, reply.text
    return server.final(job)


@pytest.fixture
def job(server: Server, nothing_left: None) -> Iterator[str]:
    """A job that stays until the test is over."""
    request_id = keep(server, "sleep infinity", environment={"WHO": "its own"})["request_id"]
    yield request_id
    assert stop(server, request_id)["status"] in ("completed", "error")


@pytest.mark.usefixtures("nothing_left")
def test_a_vm_stays_when_its_script_is_over_and_ends_when_it_is_stopped(server: Server) -> None:
    status = keep(server, "echo begun; exit 3")
    eventually(lambda: server.status(status["request_id"])["script_ended_at"])
    after = server.status(status["request_id"])
    assert (after["status"], after["exit_code"], after["vm_id"]) == ("running", 3, status["vm_id"])
    assert printed(server, after["request_id"], "hostname") == f"mags-{status['vm_id']}\n"
    with server.http() as http:
        first = http.get("/mags-jobs").json()["jobs"][0]
    assert (first["request_id"], first["persistent"]) == (status["request_id"], True)
    ended = stop(server, status["request_id"])
    assert (ended["status"], ended["exit_code"]) == ("completed", 3)
    assert "error" not in ended
    refused = asked(server, status["request_id"], "true")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


def test_a_command_has_the_jobs_environment_and_its_own_result(server: Server, job: str) -> None:
    done = execute(server, job, "echo $WHO; pwd; id -u; echo oops >&2; exit 7")
    assert (done["exit_code"], done["stdout"], done["stderr"]) == (
        7,
        "its own\n/root\n0\n",
        "oops\n",
    )
    assert "truncated" not in done
    done = execute(server, job, "printf 'a\\377b'")
    assert done["stdout"] == "a\ufffdb"


def test_commands_see_what_others_did(server: Server, job: str) -> None:
    printed(server, job, "echo kept > /root/file; mkdir /opt/mine")
    assert printed(server, job, "cat /root/file; ls -d /opt/mine") == "kept\n/opt/mine\n"


def test_what_takes_too_long_is_killed(server: Server, job: str) -> None:
    done = execute(server, job, "echo so far; sleep 1234 & sleep 1234", timeout=1)
    assert (done["exit_code"], done["stdout"]) == (124, "so far\n")
    assert execute(server, job, "pgrep -f '[s]leep 1234'")["exit_code"] == 1


def test_a_server_that_a_command_leaves_behind_serves(server: Server, job: str) -> None:
    command = "cd /etc && nohup python3 -m http.server 8123 > /tmp/log 2>&1 &"
    assert execute(server, job, command)["exit_code"] == 0
    fetch = (
        "curl -s --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:8123/os-release"
    )
    assert "ID=debian" in printed(server, job, fetch)


def test_fifty_commands_at_once(server: Server, job: str) -> None:
    def one(number: int) -> str:
        return printed(server, job, f"sleep 0.5; echo {number}", timeout=60)

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(one, range(50))) == [f"{n}\n" for n in range(50)]


def test_a_command_that_floods_does_not_fill_the_daemon(server: Server, job: str) -> None:
    assert server.process is not None
    before_kb = _peak_kb(server.process.pid)
    done = execute(server, job, "head -c 1000000000 /dev/zero; echo end >&2", timeout=60)
    assert (done["truncated"], len(done["stdout"]), done["stderr"]) == (True, 4 << 20, "end\n")
    # What is kept, twice while it is handed on, and the reply in pieces.
    assert _peak_kb(server.process.pid) - before_kb < 64 * 1024


def _peak_kb(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def test_a_client_that_goes_away_ends_its_command(server: Server, job: str) -> None:
    body = json.dumps({"command": "sleep 4321", "timeout": 600})
    head = (
        f"POST /api/v1/mags-jobs/{job}/exec HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {server.token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall((head + body).encode())
        eventually(lambda: execute(server, job, "pgrep -x sleep -a")["stdout"].count("4321"))
    eventually(lambda: "4321" not in execute(server, job, "pgrep -x sleep -a")["stdout"])


@pytest.mark.usefixtures("nothing_left")
def test_a_one_shot_job_takes_commands_while_it_runs(server: Server) -> None:
    job = server.submit("until test -e /tmp/go; do sleep 0.1; done; exit 5")
    server.running(job)
    assert printed(server, job, "touch /tmp/go; echo done") == "done\n"
    assert server.final(job)["exit_code"] == 5
    assert asked(server, job, "true").status_code == 409


@pytest.mark.usefixtures("nothing_left")
def test_a_stop_ends_commands(server: Server) -> None:
    job = keep(server)["request_id"]
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(asked, server, job, "sleep 100", timeout=100)
        eventually(lambda: execute(server, job, "pgrep -x sleep")["exit_code"] == 0)
        assert stop(server, job)["status"] == "completed"
        reply = running.result()
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")


@pytest.mark.usefixtures("nothing_left")
def test_a_vm_that_dies_ends_its_job_and_its_commands(server: Server) -> None:
    status = keep(server)
    job = status["request_id"]
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(asked, server, job, "sleep 100", timeout=100)
        eventually(lambda: execute(server, job, "pgrep -x sleep")["exit_code"] == 0)
        os.kill(server.vm_pid(status), signal.SIGKILL)
        reply = running.result()
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    assert "shim ended unexpectedly" in reply.json()["error"]
    ended = server.final(job)
    assert (ended["status"], ended["code"], ended["exit_code"]) == ("error", "shim_died", 0)


@pytest.mark.usefixtures("nothing_left")
def test_a_command_that_takes_all_memory_ends_the_vm(server: Server) -> None:
    job = keep(server, memory_mb=128)["request_id"]
    reply = asked(server, job, "python3 -c 'x = bytearray(1 << 30)'", timeout=60)
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    assert "out of memory" in reply.json()["error"]
    assert server.final(job)["code"] == "out_of_memory"


@pytest.mark.parametrize("end", [Server.stop, Server.kill], ids=["stopped", "killed"])
def test_it_outlives_the_daemon(own_server: Server, end: Any) -> None:
    idle = keep(own_server, "echo mine > /root/file; exit 3")
    busy = keep(own_server, "sleep infinity", workspace_id="lasting")
    eventually(lambda: own_server.status(idle["request_id"])["script_ended_at"])
    end(own_server)
    own_server.start()
    for status in (idle, busy):
        now = own_server.status(status["request_id"])
        assert (now["status"], now["vm_id"]) == ("running", status["vm_id"])
    assert own_server.status(idle["request_id"])["exit_code"] == 3
    assert printed(own_server, idle["request_id"], "cat /root/file") == "mine\n"
    assert printed(own_server, "lasting", "echo more > /root/more; echo ok") == "ok\n"
    ended = stop(own_server, busy["request_id"])
    assert (ended["status"], ended["workspace_synced"]) == ("completed", True)
    assert own_server.run("cat /root/more", workspace_id="lasting")["stdout"] == ["more"]
    assert stop(own_server, idle["request_id"])["status"] == "completed"


@pytest.mark.usefixtures("nothing_left")
def test_a_workspace_has_what_commands_changed(server: Server) -> None:
    job = keep(server, workspace_id="changed")["request_id"]
    printed(server, job, "echo one > /root/one")
    with server.http() as http:
        synced = http.post(f"/mags-jobs/{job}/sync")
    assert synced.status_code == 200
    printed(server, job, "echo two > /root/two")
    with pytest.raises(AssertionError, match="already in use"):
        server.submit("true", workspace_id="changed")
    assert stop(server, job)["workspace_synced"] is True
    done = server.run("cat /root/one /root/two", workspace_id="changed")
    assert done["stdout"] == ["one", "two"]


@pytest.mark.usefixtures("nothing_left")
def test_what_a_vm_had_that_died_is_in_its_workspace(server: Server) -> None:
    status = keep(server, "sleep infinity", workspace_id="rescued")
    printed(server, status["request_id"], "echo saved > /root/file")
    os.kill(server.vm_pid(status), signal.SIGKILL)
    ended = server.final(status["request_id"])
    assert (ended["status"], ended["code"]) == ("error", "shim_died")
    assert ended["workspace_synced"] is True
    assert server.run("cat /root/file", workspace_id="rescued")["stdout"] == ["saved"]


@pytest.mark.usefixtures("nothing_left")
def test_what_is_not_synced_is_gone_with_the_job(server: Server) -> None:
    job = keep(server, workspace_id="passing", no_sync=True)["request_id"]
    printed(server, job, "echo gone > /root/file")
    assert stop(server, job)["workspace_synced"] is False
    assert (
        server.run("test ! -e /root/file", workspace_id="passing", no_sync=True)["exit_code"] == 0
    )
