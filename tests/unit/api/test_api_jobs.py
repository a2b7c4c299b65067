"""Routes of jobs: what is accepted, what is refused and how, what replies look like."""

import dataclasses
import json

import pytest

from magsd.api.schemas import JobReply, JobsReply, Stopped, Submitted
from magsd.model.errors import JobCode
from magsd.model.lifecycle import Status

JOBS = "/api/v1/mags-jobs"


async def submitted(client, **body):
    return await client.post(JOBS, json={"script": "echo hi", **body})


async def test_the_least_submit(client, book):
    reply = await client.post("/api/v2/mags-jobs", json={"script": "echo hi"})
    assert reply.status_code == 202
    accepted = Submitted.model_validate(reply.json())
    assert accepted.message == "Mags job submitted successfully"
    assert accepted.request_id in book.jobs
    assert "warnings" not in reply.json()
    (spec, key) = book.specs[0]
    assert (spec.script, spec.name, spec.rootfs_type, key) == ("echo hi", None, "standard", None)


async def test_a_full_submit(client, book):
    body = {
        "script": "echo hi",
        "type": "inline",
        "name": "mine",
        "environment": {"A": "1"},
        "rootfs_type": "alpine",
        "timeout": 5,
        "vcpus": 2,
        "memory_mb": 256,
        "disk_gb": 3,
        "engine": "gvisor",
    }
    reply = await client.post(JOBS, json=body, headers={"Idempotency-Key": "k"})
    assert reply.status_code == 202
    (spec, key) = book.specs[0]
    assert key == "k"
    assert dataclasses.asdict(spec) == {
        "script": "echo hi",
        "name": "mine",
        "environment": {"A": "1"},
        "timeout_s": 5,
        "rootfs_type": "alpine",
        "vcpus": 2,
        "memory_mb": 256,
        "disk_gb": 3,
        "engine": "gvisor",
        "ignored": (),
    }


async def test_what_asks_for_nothing_is_accepted(client, book):
    nothing = {
        "persistent": False,
        "no_sleep": False,
        "no_sync": None,
        "workspace_id": None,
        "base_workspace_id": "",
        "startup_command": "",
        "file_ids": [],
        "idle_timeout": None,
        "reset": False,
        "name": None,
        "environment": {"__MAGS_KEEP_ALIVE": "false", "__MAGS_IDLE_MIN": ""},
    }
    assert (await submitted(client, **nothing)).status_code == 202
    assert book.specs[0][0].environment == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("persistent", True),
        ("no_sleep", True),
        ("no_sync", True),
        ("workspace_id", "w"),
        ("base_workspace_id", "w"),
        ("startup_command", "true"),
        ("file_ids", ["x"]),
        ("idle_timeout", 60),
        ("reset", True),
    ],
)
async def test_what_is_not_built_is_refused(client, book, name, value):
    reply = await submitted(client, **{name: value})
    assert reply.status_code == 400
    assert f"{name} is not supported by this version" in reply.json()["error"]
    assert not book.specs


async def test_unknown_fields_are_ignored_and_told(client, book):
    reply = await submitted(client, ephemeral=True, **{"x\n": 1, "y" * 99: 1})
    assert reply.status_code == 202
    assert reply.json()["warnings"] == [
        "unknown field 'ephemeral' was ignored",
        "unknown field 'x?' was ignored",
        f"unknown field '{'y' * 64}' was ignored",
    ]
    assert book.specs[0][0].ignored == ("ephemeral", "x?", "y" * 64)


async def test_reserved_keys_are_settings(client, book):
    environment = {"__MAGS_ROOTFS_TYPE": "alpine", "__MAGS_MEM_GB": "2", "A": "1"}
    assert (await submitted(client, environment=environment)).status_code == 202
    spec = book.specs[0][0]
    assert (spec.rootfs_type, spec.memory_mb, spec.environment) == ("alpine", 2048, {"A": "1"})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"script": None}, "script"),
        ({"script": ""}, "script"),
        ({"script": " \n\t"}, "script"),
        ({"script": ["echo"]}, "script"),
        ({"type": "file"}, "file"),
        ({"type": 1}, "type"),
        ({"name": ""}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "half \ud800"}, "name"),
        ({"name": 5}, "name"),
        ({"environment": []}, "environment"),
        ({"environment": {"A": 1}}, "environment.A"),
        ({"environment": {"__MAGS_KEEP_ALIVE": "true"}}, "__MAGS_KEEP_ALIVE"),
        ({"environment": {"__MAGS_IDLE_MIN": "5"}}, "__MAGS_IDLE_MIN"),
        ({"environment": {"__MAGS_OTHER": "x"}}, "__MAGS_OTHER"),
        ({"environment": {"__MAGS_MEM_GB": "1.5"}}, "__MAGS_MEM_GB"),
        ({"environment": {"__MAGS_MEM_GB": "1"}, "memory_mb": 512}, "memory_mb"),
        ({"environment": {"__MAGS_ROOTFS_TYPE": "a"}, "rootfs_type": "b"}, "rootfs_type"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": 1.5}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"vcpus": "2"}, "vcpus"),
        ({"memory_mb": []}, "memory_mb"),
        ({"disk_gb": "2"}, "disk_gb"),
        ({"rootfs_type": 1}, "rootfs_type"),
        ({"engine": {}}, "engine"),
        ({"persistent": "yes"}, "persistent"),
        ({"persistent": 0}, "persistent"),
        ({"file_ids": "x"}, "file_ids"),
        ({"workspace_id": 7}, "workspace_id"),
    ],
)
async def test_wrong_values_are_named(client, book, body, named):
    reply = await client.post(JOBS, content=json.dumps({"script": "echo hi", **body}))
    assert reply.status_code == 400
    assert reply.json()["code"] == "invalid"
    assert named in reply.json()["error"]
    assert not book.specs


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'"script"',
        b"null",
        b'{"script": "\xff"}',
        b"[" * 100_000,
        b'{"script": "x", "timeout": ' + b"1" * 5000 + b"}",
        b"",
        b"script=echo",
    ],
)
async def test_bodies_that_are_no_object(client, content):
    headers = {"Content-Type": "application/json"}
    reply = await client.post(JOBS, content=content, headers=headers)
    assert reply.status_code == 400
    assert set(reply.json()) == {"error", "code"}


@pytest.mark.parametrize("script", ["x" * (10 << 20), "x" * ((1 << 20) + 1), "ä" * (600 << 10)])
async def test_a_script_that_is_too_large(client, script):
    reply = await submitted(client, script=script)
    assert reply.status_code == 413
    assert reply.json()["code"] == "too_large"


async def test_a_body_of_unknown_length_is_cut_off(client):
    async def endless():
        yield b'{"script": "'
        for _ in range(64):
            yield b"x" * 65536

    assert (await client.post(JOBS, content=endless())).status_code == 413


async def test_the_largest_script(client, book):
    assert (await submitted(client, script="x" * (1 << 20))).status_code == 202


async def test_status_of_a_job(client, book, admin):
    job = book.add(admin.principal)
    reply = await client.get(f"{JOBS}/{job.request_id}/status")
    JobReply.model_validate(reply.json())
    assert reply.json() == {
        "request_id": job.request_id,
        "name": "a job",
        "status": "running",
        "vm_id": "0123abcd",
        "workspace_id": None,
        "persistent": False,
        "no_sleep": False,
        "subdomain": "0123456789ab",
        "url": "http://0123456789ab.apps.localhost:7071",
        "sleeping": False,
        "exit_code": 0,
        "queue_duration_ms": 1,
        "acquire_duration_ms": 20,
        "script_duration_ms": 0,
        "created_at": "2026-01-31T12:00:00.250Z",
        "started_at": "2026-01-31T12:00:00.250Z",
        "completed_at": None,
        "engine": "gvisor",
        "isolation": "application-kernel",
        "generation": 2,
    }


async def test_status_of_a_failure(client, book, admin):
    job = book.add(
        admin.principal,
        status=Status.ERROR,
        exit_code=None,
        error="no VM came up",
        code=JobCode.LAUNCH_FAILED,
    )
    reply = (await client.get(f"{JOBS}/a%20job/status")).json()
    JobReply.model_validate(reply)
    assert (reply["request_id"], reply["exit_code"]) == (job.request_id, None)
    assert (reply["error"], reply["code"]) == ("no VM came up", "launch_failed")


async def test_a_long_poll_waits_as_asked(client, book, admin):
    job = book.add(admin.principal)
    await client.get(f"{JOBS}/{job.request_id}/status?wait=0.01&after=2")
    await client.get(f"{JOBS}/{job.request_id}/status?wait=0")
    assert book.waits == [(0.01, 2)]


@pytest.mark.parametrize(
    "query",
    ["wait=61", "wait=-1", "wait=nan", "wait=inf", "wait=x", "wait=1&after=-2", "after=x"],
)
async def test_bad_long_polls(client, book, admin, query):
    job = book.add(admin.principal)
    reply = await client.get(f"{JOBS}/{job.request_id}/status?{query}")
    assert reply.status_code == 400
    assert reply.json()["error"].split()[0] in ("wait", "after")


async def test_a_long_poll_is_answered_when_the_server_stops(client, book, admin, waits):
    job = book.add(admin.principal)
    waits.stop()
    reply = await client.get(f"{JOBS}/{job.request_id}/status?wait=60&after=2")
    assert reply.json()["status"] == "running"


@pytest.mark.parametrize(
    "ref", ["nobody", "x" * 129, "a%00b", "%ff%fe", "..%2f..%2fetc", "a%0ab", "😀"]
)
async def test_malformed_and_unknown_ids(client, ref):
    for method, what in [("GET", "status"), ("GET", "logs"), ("POST", "stop")]:
        reply = await client.request(method, f"{JOBS}/{ref}/{what}")
        assert reply.status_code == 404
        assert reply.json()["code"] == "not_found"


async def test_a_list(client, book, admin):
    book.add(admin.principal)
    book.add(admin.principal, status=Status.COMPLETED)
    reply = (await client.get(f"{JOBS}?page=1&page_size=1")).json()
    JobsReply.model_validate(reply)
    assert (reply["total"], reply["page"], reply["page_size"], len(reply["jobs"])) == (2, 1, 1, 1)
    assert reply["jobs"][0]["job_id"] == reply["jobs"][0]["request_id"]
    reply = (await client.get(f"{JOBS}?status=completed")).json()
    assert [job["status"] for job in reply["jobs"]] == ["completed"]


@pytest.mark.parametrize(
    "query", ["page=0", "page_size=0", "page_size=101", "page=x", "status=lost", f"page={10**30}"]
)
async def test_bad_lists(client, query):
    reply = await client.get(f"{JOBS}?{query}")
    assert reply.status_code == 400
    assert query.split("=")[0] in reply.json()["error"]


async def test_stop(client, book, admin):
    job = book.add(admin.principal)
    reply = (await client.post(f"{JOBS}/{job.request_id}/stop")).json()
    assert Stopped.model_validate(reply).status == "stopping"
    job = book.add(admin.principal, name="over", status=Status.ERROR, exit_code=143)
    reply = (await client.post(f"{JOBS}/over/stop", json={})).json()
    assert Stopped.model_validate(reply).status == "error"
