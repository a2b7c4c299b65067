"""Sandboxes that stay: what the client and the command send, and what they make of the replies."""

import pytest

from mags.errors import MagsError
from tests.unit.client.local_api import Reply

JOB = "0b8a4b1e-6f1c-4f8e-9a39-0d5a0c3c4c11"
JOBS = "/api/v1/mags-jobs"


def test_a_new_sandbox_is_waited_for(api, mags):
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202))
    pending, running = {"status": "pending", "vm_id": ""}, {"status": "running", "vm_id": "01"}
    api.on("GET", f"{JOBS}/{JOB}/status", pending, running)

    assert mags.new("box", disk_gb=3, poll_interval=0) == {"request_id": JOB, "status": "running"}

    assert api.requests[0].body == {
        "script": "sleep infinity",
        "type": "inline",
        "persistent": True,
        "workspace_id": "box",
        "no_sync": True,
        "disk_gb": 3,
    }
    mags.new("box", persistent=True)
    assert "no_sync" not in api.requests[3].body


def test_a_new_sandbox_that_does_not_come_up_is_told(api, mags):
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202))
    api.on("GET", f"{JOBS}/{JOB}/status", {"status": "error", "error": "no VM came up"})
    with pytest.raises(MagsError, match="ended unexpectedly: no VM came up"):
        mags.new("box")
    api.replies.clear()
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202))
    api.on("GET", f"{JOBS}/{JOB}/status", {"status": "pending", "vm_id": ""})
    with pytest.raises(MagsError, match="did not start within 0"):
        mags.new("box", timeout=0)


def test_a_command_and_settings(api, mags):
    done = {"exit_code": 7, "stdout": "out", "stderr": "err", "duration_ms": 1}
    api.on("POST", f"{JOBS}/box/exec", done)
    api.on("PATCH", f"{JOBS}/box", {"success": True})

    assert mags.exec("box", "x", timeout=5) == {"exit_code": 7, "output": "out", "stderr": "err"}
    assert mags.update_job("box", no_sleep=False) == {"success": True}

    assert [request.body for request in api.requests] == [
        {"command": "x", "timeout": 5},
        {"no_sleep": False},
    ]


def test_new_prints_the_id_alone(api, run):
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202))
    api.on("GET", f"{JOBS}/{JOB}/status", {"status": "running", "vm_id": "01"})

    code, printed, told = run("new", "box", "-p", "--base", "tools", "--disk", "3")

    assert (code, printed) == (0, f"{JOB}\n".encode())
    assert b"mags exec box" in told
    body = api.requests[0].body
    assert (body["base_workspace_id"], body["disk_gb"], "no_sync" in body) == ("tools", 3, False)


def test_exec_prints_what_the_command_did_and_ends_as_it_did(api, run):
    done = {"exit_code": 7, "stdout": "no newline", "stderr": "\u00e9\n", "duration_ms": 1}
    api.on("POST", f"{JOBS}/box/exec", done)

    told = run("exec", "--timeout", "9", "box", "ls", "-l", "--all", "/root")

    assert told == (7, b"no newline", "\u00e9\n".encode())
    assert api.requests[0].body == {"command": "ls -l --all /root", "timeout": 9}


def test_set_changes_settings(api, run):
    api.on("PATCH", f"{JOBS}/box", {"success": True, "message": "Job updated"})

    assert run("set", "box", "--no-sleep") == (0, b"Job updated\n", b"")
    run("set", "box", "--sleep")
    run("set", "box", "--startup-command", "serve")

    assert [request.body for request in api.requests] == [
        {"no_sleep": True},
        {"no_sleep": False},
        {"startup_command": "serve"},
    ]


def test_set_says_what_can_be_set(api, run):
    exit_code, _, told = run("set", "box")
    assert exit_code == 2
    assert b"--startup-command" in told
    assert not api.requests


@pytest.mark.parametrize("state", ["running", "sleeping"])
def test_a_sandbox_is_kept_and_stopped_before_it_is_made_with_another_disk(api, mags, state):
    found = {"request_id": JOB, "name": "box", "workspace_id": "box", "status": state}
    api.on("GET", JOBS, {"jobs": [found]})
    api.on("POST", f"{JOBS}/{JOB}/sync", {"success": True})
    api.on("POST", f"{JOBS}/{JOB}/stop", {"success": True})
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202))
    api.on("GET", f"{JOBS}/{JOB}/status", {"status": "running", "vm_id": "01"})

    assert mags.resize("box", 5) == {"request_id": JOB, "status": "running"}

    asked = [(one.method, one.path.partition("?")[0]) for one in api.requests]
    assert asked[1:4] == [
        ("POST", f"{JOBS}/{JOB}/sync"),
        ("POST", f"{JOBS}/{JOB}/stop"),
        ("POST", JOBS),
    ]
    assert api.requests[3].body["disk_gb"] == 5


def test_a_sandbox_that_cannot_be_kept_goes_on_as_it_is(api, mags):
    found = {"request_id": JOB, "name": "box", "workspace_id": "box", "status": "running"}
    api.on("GET", JOBS, {"jobs": [found]})
    api.on("POST", f"{JOBS}/{JOB}/sync", Reply({"error": "there is nothing to sync"}, 400))
    with pytest.raises(MagsError, match="nothing to sync"):
        mags.resize("box", 5)
    assert len(api.requests) == 2


def test_a_script_file_that_is_no_text_is_refused(run, tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    code, _, told = run("run", "--script", str(tmp_path / "a"))
    assert code == 2
    assert b"UTF-8" in told
