"""Routes of jobs that run: commands and settings."""

import asyncio

import pytest
import pytest_asyncio

from magsd.api.live_schemas import Executed, Updated
from tests.api_service import DEADLINE_S

JOBS = "/api/v1/mags-jobs"


@pytest_asyncio.fixture(loop_scope="session")
async def job(admin):
    """One that runs, whose VM would stay."""
    job = await admin.running(persistent=True, environment={"A": "é"})
    yield job
    await admin.application.stop(admin.principal, job.request_id)


@pytest.fixture
def execute(client, job):
    async def send(command="true", **fields):
        path = f"{JOBS}/{job.request_id}/exec"
        return await client.post(path, json={"command": command, **fields}, timeout=DEADLINE_S)

    return send


async def test_a_command_and_what_it_printed(execute):
    reply = await execute('echo "$A" in $(pwd); printf "oo\\377ps" >&2; exit 7')
    assert reply.status_code == 200
    Executed.model_validate(reply.json())
    taken_ms = reply.json().pop("duration_ms")
    assert taken_ms >= 0
    assert reply.json() == {
        "exit_code": 7,
        "stdout": "é in /root\n",
        "stderr": "oo\ufffdps",
        "duration_ms": taken_ms,
    }


async def test_null_is_the_usual_time_and_unknown_fields_are_told(execute):
    reply = await execute(timeout=None, shell="zsh")
    assert reply.json()["warnings"] == ["unknown field 'shell' was ignored"]
    assert reply.json()["exit_code"] == 0


async def test_what_took_too_long_is_124(execute):
    reply = (await execute("echo so far; sleep 1000", timeout=1)).json()
    assert (reply["exit_code"], reply["stdout"]) == (124, "so far\n")


async def test_much_output_is_cut_and_said_to_be(execute):
    reply = await execute("flood 5000000")
    Executed.model_validate(reply.json())
    assert reply.json()["truncated"] is True
    assert len(reply.json()["stdout"].encode()) == 4 << 20


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "command"),
        ({"command": 7}, "command"),
        ({"command": " "}, "command"),
        ({"command": "a\0b"}, "command"),
        ({"command": "true", "timeout": 0}, "timeout"),
        ({"command": "true", "timeout": "30"}, "timeout"),
        ({"command": "true", "timeout": 1.5}, "timeout"),
        ({"command": "true", "timeout": 10**9}, "timeout"),
    ],
)
async def test_wrong_values_are_named(client, job, body, named):
    reply = await client.post(f"{JOBS}/{job.request_id}/exec", json=body)
    assert reply.status_code == 400
    assert named in reply.json()["error"]


async def test_one_that_is_too_long(execute):
    reply = await execute("x" * 70_000)
    assert (reply.status_code, reply.json()["code"]) == (413, "too_large")


async def test_a_job_that_is_over(client, admin):
    job = await admin.run()
    reply = await client.post(f"{JOBS}/{job.request_id}/exec", json={"command": "true"})
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    assert "over" in reply.json()["error"]
    reply = await client.patch(f"{JOBS}/{job.request_id}", json={"no_sleep": False})
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    reply = await client.patch(f"{JOBS}/{job.request_id}", json={"no_sleep": True})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid")


async def test_the_vms_end_is_told(execute):
    reply = await execute("fake engine_died")
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    assert "lost with its VM: the VM's engine ended" in reply.json()["error"]


async def test_a_stop_of_the_server_ends_commands(execute, waits):
    asked = asyncio.ensure_future(execute("sleep 1000"))
    async with asyncio.timeout(DEADLINE_S):
        while not waits._open:
            await asyncio.sleep(0)
    waits.stop()
    reply = await asked
    assert (reply.status_code, reply.json()["code"]) == (503, "capacity")
    assert "stopping" in reply.json()["error"]


# --- settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"no_sleep": True},
        {"no_sleep": None, "startup_command": ""},
        {"startup_command": "x"},
    ],
)
async def test_settings_are_changed(client, job, body):
    reply = await client.patch(f"{JOBS}/{job.request_id}", json=body)
    assert reply.status_code == 200
    Updated.model_validate(reply.json())
    assert reply.json() == {"success": True, "message": "Job updated"}
    status = (await client.get(f"{JOBS}/{job.request_id}/status")).json()
    assert status["no_sleep"] is bool(body and body.get("no_sleep"))


async def test_unknown_settings_are_told_and_wrong_ones_refused(client, job):
    path = f"{JOBS}/{job.request_id}"
    reply = await client.patch(path, json={"colour": "red"})
    assert reply.json()["warnings"] == ["unknown field 'colour' was ignored"]
    for body, named in (
        ({"startup_command": "a\0b"}, "startup_command"),
        ({"startup_command": 1}, "startup_command"),
        ({"no_sleep": 1}, "no_sleep"),
    ):
        reply = await client.patch(path, json=body)
        assert reply.status_code == 400
        assert named in reply.json()["error"]
