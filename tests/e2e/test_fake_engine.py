"""The daemon with the engine that only simulates scripts: no image, and no root where it matters."""

import os
import signal
import subprocess

import pytest

from tests import census
from tests.e2e.server import MAGSD, Server, eventually


@pytest.fixture
def fake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake")
    server = Server(folder, MAGSD_ENGINE="fake", MAGSD_POOL_MIN="1")
    before = census.take(server.data)
    try:
        server.start()
        yield server
    finally:
        server.stop()
    census.assert_same(before, server.data)


def test_scripts_are_simulated_and_that_is_told(fake):
    done = fake.run("echo hello from $(hostname); echo oops >&2; no-such-program; exit 3")
    assert (done["status"], done["exit_code"], done["engine"]) == ("error", 3, "fake")
    assert done["isolation"] == "none"
    assert done["stdout"] == [f"hello from mags-{done['vm_id']}"]
    assert any("runs no programs" in entry["message"] for entry in done["log"])
    assert "scripts are only simulated" in fake.log.read_text()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("fake out_of_memory", "out_of_memory"),
        ("fake too_many_processes", "too_many_processes"),
        ("fake engine_died", "engine_died"),
        ("fake agent_died", "agent_died"),
        ("fake shim_died", "shim_died"),
        ("sleep 600", "timeout"),
    ],
)
def test_what_happens_to_a_script_is_told(fake, script, code):
    done = fake.run(f"echo begun; {script}", timeout=1)
    assert (done["status"], done["code"], done["stdout"]) == ("error", code, ["begun"])


def test_a_script_outlives_the_daemon(fake):
    job = fake.submit("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.3; done")
    fake.running(job)
    eventually(lambda: fake.stdout(job))
    fake.kill()
    fake.start()
    assert fake.final(job)["status"] == "completed"
    assert fake.stdout(job) == list("12345678")


def test_the_host_of_the_vms_is_killed(fake):
    job = fake.submit("echo up; sleep 600")
    status = fake.running(job)
    eventually(lambda: fake.stdout(job))
    os.kill(fake.vm_pid(status), signal.SIGKILL)
    assert fake.final(job)["code"] == "shim_died"
    assert fake.run("echo again")["stdout"] == ["again"]


def test_daemon_and_host_are_killed(fake):
    job = fake.submit("echo up; sleep 600")
    pid = fake.vm_pid(fake.running(job))
    eventually(lambda: fake.stdout(job))
    fake.kill()
    os.kill(pid, signal.SIGKILL)
    fake.start()
    assert fake.final(job)["code"] == "shim_died"
    assert fake.stdout(job) == ["up"]


def test_the_engine_is_chosen_on_the_command_line(tmp_path):
    environment = {"PATH": os.environ["PATH"], "MAGSD_DATA_DIR": str(tmp_path)}
    argv = [MAGSD, "serve", "--engine", "steam"]
    ran = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "engine" in ran.stderr
    assert "fake" in ran.stderr
