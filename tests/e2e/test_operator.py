"""What an operator does at the console of the machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from magsd.doctor import leftovers
from magsd.doctor.leftovers import Leftover
from magsd.engine.network import instance_of
from tests import census
from tests.e2e.server import MAGSD, REPOSITORY, Server, eventually, serving

SECRETS = ["mags_end_to_end_tests_0123456789", "hunter2-in-the-environment", "in-the-script-77"]


def _magsd(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MAGSD, *arguments],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_lost_token_is_replaced_while_the_server_runs(server: Server) -> None:
    made = _magsd(server, "token", "--name", "spare")
    assert made.returncode == 0, made.stderr
    with server.http(made.stdout.strip()) as http:
        whoami = http.get("/whoami").json()
        names = [token["name"] for token in http.get("/tokens").json()["tokens"]]
    assert whoami["account"] == "default"
    assert "admin" in whoami["scopes"]
    assert "spare" in names


def test_there_is_no_token_without_a_database(tmp_path: Path) -> None:
    nowhere = Server(tmp_path)
    refused = _magsd(nowhere, "token")
    assert refused.returncode == 1
    assert "magsd serve" in refused.stderr
    assert not nowhere.data.exists()


def test_two_doctors_at_once_find_this_machine_well(server: Server) -> None:
    with ThreadPoolExecutor() as both:
        for told in both.map(lambda _: _magsd(server, "doctor"), range(2)):
            assert told.returncode == 0, told.stdout + told.stderr
            assert "gvisor" in told.stdout.lower()


def _metrics(server: Server) -> dict[tuple[str, ...], float]:
    """Return every sample by name and the values of its labels."""
    reply = httpx.get(f"{server.url}/metrics", timeout=10)
    assert reply.status_code == 200
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_a_scrape_counts_what_was_done(server: Server) -> None:
    before = _metrics(server)
    assert server.run("exit 3")["exit_code"] == 3
    assert server.run("true")["status"] == "completed"
    after = _metrics(server)

    def rise(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    assert rise("mags_jobs_submitted_total", "gvisor") >= 2
    assert rise("mags_jobs_ended_total", "gvisor", "script_failed") >= 1
    assert rise("mags_jobs_ended_total", "completed", "gvisor") >= 1
    begun = ("mags_claim_seconds_count", "mags_launch_seconds_count")
    assert sum(rise(name, "gvisor") for name in begun) >= 2
    assert after["mags_ready",] == 1
    assert after["process_resident_memory_bytes",] > 0
    assert after["mags_event_loop_lag_seconds_count",] > 0
    assert rise("mags_database_commit_seconds_count") >= 2
    assert rise("mags_database_writes_total") >= 2


def test_a_scrape_from_elsewhere_needs_an_admin_token(server: Server) -> None:
    far = {"X-Forwarded-For": "192.0.2.1"}
    assert httpx.get(f"{server.url}/metrics", headers=far).status_code == 401
    token = far | {"Authorization": f"Bearer {server.token}"}
    assert httpx.get(f"{server.url}/metrics", headers=token).status_code == 200


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        with serving(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as server:
            assert notified.recv(100) == b"READY=1"
            assert server.stop() == 0
        assert notified.recv(100) == b"STOPPING=1"


def test_the_log_is_json_and_holds_no_secret(tmp_path: Path) -> None:
    with serving(tmp_path, MAGSD_LOG_LEVEL="debug") as server:
        fields = {"environment": {"PASSWORD": SECRETS[1]}}
        server.run(f"echo $PASSWORD; echo {SECRETS[2]}; exit 1", **fields)
        server.run(f"sleep 60 # {SECRETS[2]}", timeout=1, **fields)
        with server.http() as http:
            http.post("/mags-jobs", json={"script": SECRETS[2], "workspace_id": "x", **fields})
            http.post("/mags-jobs", content=SECRETS[2].encode())
            http.get("/whoami", headers={"Authorization": f"Bearer {SECRETS[1]}"})
        os.kill(server.vm_pid(server.running(server.submit("sleep 60", **fields))), signal.SIGKILL)
        for layer in (server.data / "layers").glob("*.sqfs"):
            layer.unlink()
        # Of another size than those that wait: it is launched, and fails.
        assert server.run("true", memory_mb=333, **fields)["code"] == "image_damaged"
    text = server.log.read_text()
    assert not [secret for secret in SECRETS if secret in text]
    entries = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert "launch_failed" in {entry["event"] for entry in entries}
    for entry in entries:
        assert {"event", "level", "timestamp"} <= entry.keys(), entry
    # Everything else is the introduction on standard output, which is for people.
    others = [line for line in text.splitlines() if not line.startswith("{")]
    assert all(line.startswith(("magsd ", "  ")) for line in others), others


def _left(server: Server, instance: str) -> list[Leftover]:
    return [left for left in leftovers.find(server.data) if left.instance == instance]


@pytest.fixture
def left_alone(tmp_path: Path) -> Iterator[Server]:
    """A server that is killed while a script runs."""
    server = Server(tmp_path)
    server.add_image()
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_what_a_dead_daemon_left_is_found_and_removed(left_alone: Server) -> None:
    server, instance = left_alone, instance_of(left_alone.data)
    before = census.take(server.data / "nothing")
    shim = server.vm_pid(server.running(server.submit("sleep 300")))
    try:
        assert _left(server, instance) == []
        server.kill()
        assert _left(server, instance) == []  # the sandbox lives
    finally:
        os.kill(shim, signal.SIGKILL)
    shutil.rmtree(server.data)
    kinds = {"dns forwarder", "firewall table", "interface", "control group"}
    # The kernel takes the shim's things away one after another, and lists them so.
    eventually(
        lambda: kinds <= {left.kind for left in _left(server, instance)}, 10, "all kinds are found"
    )
    assert all(left.command for left in _left(server, instance))

    said: list[str] = []
    assert leftovers.clean(_left(server, instance), said.append), said
    assert eventually(lambda: not _left(server, instance), 10, "nothing is left")
    left = [line for line in census.difference(before, census.take()) if instance in line]
    assert left == []


def test_the_demo_runs_and_leaves_nothing() -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tools/demo.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = done.stdout.splitlines()
    assert "42" in lines
    assert any(line.startswith("hello from mags-") for line in lines)
    assert any(line.startswith("left      nothing") for line in lines)
    assert not (REPOSITORY / ".demo").exists()
