"""The command `mags` and `make demo` against the real server."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server import MAGS, REPOSITORY, Server


@pytest.fixture
def start(server: Server, tmp_path: Path):
    """Start `mags` as a user of the server, with settings of the test's own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAGS")}
    environment |= {
        "MAGS_API_URL": server.url,
        "MAGS_API_TOKEN": server.token,
        "HOME": str(tmp_path),
    }

    def start(*arguments, **options):
        return subprocess.Popen(
            [MAGS, *arguments],
            env=environment,
            stdin=options.get("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def mags(start):
    """Run `mags` to its end; return exit code, stdout and stderr."""

    def run(*arguments, given=None):
        with start(*arguments, stdin=subprocess.PIPE if given else None) as process:
            printed, errors = process.communicate(given, timeout=60)
        return process.returncode, printed, errors

    return run


def test_a_script_prints_where_it_printed_and_ends_as_it_ended(mags):
    script = "echo to $PLACE; echo aside >&2; exit 7"

    code, printed, errors = mags("run", "-e", "PLACE=stdout", script)

    assert (code, printed) == (7, "to stdout\n")
    assert errors.splitlines()[0] == "aside"


def test_a_script_from_standard_input_with_much_output(mags):
    code, printed, errors = mags("run", "-", given="seq 100000")

    assert (code, errors) == (0, "")
    assert printed.splitlines() == [str(number) for number in range(1, 100001)]


def test_a_detached_job_is_found_by_its_name_and_stopped(mags, start):
    name = f"detached/{os.getpid()} x"
    code, printed, _ = mags("run", "-d", "-n", name, "echo begun; sleep 1000")
    assert code == 0
    job = printed.strip()

    with start("logs", "-f", name) as following:
        assert following.stdout.readline() == "begun\n"
        assert json.loads(mags("status", name, "--json")[1])["request_id"] == job
        assert mags("stop", name) == (0, "Job stopped\n", "")
        _, errors = following.communicate(timeout=30)

    assert following.returncode == 0
    assert "stopped" in errors
    assert f"{job}  {name}" in mags("list")[1]


def test_ctrl_c_stops_the_job(server, start):
    with start("run", "echo begun; sleep 1000") as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    job = errors.split("stopping job ")[1].split(";")[0]
    status = server.status(job)
    assert (status["status"], status["code"]) == ("error", "stopped")


def test_a_log_that_is_followed_goes_on_when_the_server_starts_again(own_server, tmp_path):
    job = own_server.submit("for i in $(seq 30); do echo $i; sleep 0.2; done")
    environment = os.environ | {
        "MAGS_API_URL": own_server.url,
        "MAGS_API_TOKEN": own_server.token,
        "HOME": str(tmp_path),
    }
    with subprocess.Popen(
        [MAGS, "logs", "-f", job], env=environment, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout.readline() == "1\n"
        own_server.kill()
        own_server.start()
        printed, _ = following.communicate(timeout=60)

    assert following.returncode == 0
    assert printed.split() == [str(number) for number in range(2, 31)]


def test_whoever_has_a_token_can_log_in(server, mags, tmp_path):
    assert mags("login", "--token", server.token, "--url", server.url)[0] == 0
    assert json.loads((tmp_path / ".mags/config.json").read_text())["api_token"] == server.token
    assert mags("login", "--token", "nobody")[0] == 3
    assert json.loads(mags("whoami", "--json")[1])["account"] == "default"


def test_the_demo_runs_and_leaves_nothing():
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
