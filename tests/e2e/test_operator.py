"""What an operator does at the console of the machine."""

import subprocess
import sys
from pathlib import Path

from tests.e2e.server import MAGSD, REPOSITORY, Server


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


def test_the_doctor_finds_this_machine_well(server: Server) -> None:
    told = _magsd(server, "doctor")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "gvisor" in told.stdout.lower()


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
