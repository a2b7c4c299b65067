"""Routes of jobs: what is accepted, what is refused and how, what becomes of it."""

import json

import pytest

from magsd.api.schemas import JobReply, JobsReply, PoolStatusReply, Stopped, Submitted

JOBS = "/api/v1/mags-jobs"


async def submitted(client, **body):
    return await client.post(JOBS, json={"script": "echo hi", **body})


async def test_the_least_submit(client, admin):
    reply = await client.post("/api/v2/mags-jobs", json={"script": "echo hi"})
    assert reply.status_code == 202
    accepted = Submitted.model_validate(reply.json())
    assert accepted.message == "Mags job submitted successfully"
    assert "warnings" not in reply.json()
    assert (await admin.until(accepted.request_id)).exit_code == 0


async def test_a_script_gets_its_name_and_environment(client, admin):
    environment = {"A": "é 1", "__MAGS_MEM_GB": "1"}
    reply = await submitted(
        client, script='test "$A" = "é 1" && exit 7', name="mine", environment=environment
    )
    status = await admin.until(reply.json()["request_id"])
    assert (status.name, status.exit_code) == ("mine", 7)


async def test_unknown_fields_are_told(client, admin):
    reply = await submitted(client, ephemeral=True, **{"x\n": 1})
    assert reply.status_code == 202
    assert reply.json()["warnings"] == [
        "unknown field 'ephemeral' was ignored",
        "unknown field 'x?' was ignored",
    ]


async def test_a_key_makes_a_submit_harmless_to_repeat(client, admin):
    headers = {"Idempotency-Key": "k"}
    first, second = [
        (await client.post(JOBS, json={"script": "true"}, headers=headers)).json() for _ in range(2)
    ]
    assert first == second
    assert len(await admin.jobs()) == 1
    other = await client.post(JOBS, json={"script": "false"}, headers=headers)
    assert other.status_code == 409
    assert other.json()["code"] == "conflict"
    assert first["request_id"] in other.json()["error"]


@pytest.mark.parametrize("key", ["x" * 256, "a\tb"])
async def test_bad_keys(client, admin, key):
    reply = await client.post(JOBS, json={"script": "true"}, headers={"Idempotency-Key": key})
    assert reply.status_code == 400
    assert "Idempotency-Key" in reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"script": None}, "script"),
        ({"script": ""}, "script"),
        ({"script": " \n\t"}, "script"),
        ({"script": "a\0b"}, "script"),
        ({"script": ["echo"]}, "script"),
        ({"type": "file"}, "file"),
        ({"type": 1}, "type"),
        ({"name": ""}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "half \ud800"}, "name"),
        ({"name": 5}, "name"),
        ({"environment": []}, "environment"),
        ({"environment": {"A": 1}}, "environment.A"),
        ({"environment": {"A=B": "1"}}, "environment"),
        ({"environment": {"A": "x" * 60_001}}, "environment"),
        ({"environment": {"__MAGS_KEEP_ALIVE": "true"}}, "no_sleep"),
        ({"environment": {"__MAGS_KEEP_ALIVE": "x"}}, "__MAGS_KEEP_ALIVE"),
        ({"environment": {"__MAGS_IDLE_MIN": "5"}}, "idle_timeout needs persistent"),
        ({"environment": {"__MAGS_IDLE_MIN": "1h"}}, "__MAGS_IDLE_MIN"),
        ({"idle_timeout": 60}, "idle_timeout needs persistent"),
        ({"idle_timeout": 9, "persistent": True}, "idle_timeout must be between 10 and 604800"),
        ({"idle_timeout": "60", "persistent": True}, "idle_timeout"),
        ({"startup_command": "a\0b", "persistent": True}, "startup_command"),
        ({"startup_command": 1, "persistent": True}, "startup_command"),
        ({"environment": {"__MAGS_OTHER": "x"}}, "__MAGS_OTHER"),
        ({"environment": {"__MAGS_MEM_GB": "1.5"}}, "__MAGS_MEM_GB"),
        ({"environment": {"__MAGS_MEM_GB": "1"}, "memory_mb": 512}, "memory_mb"),
        ({"environment": {"__MAGS_ROOTFS_TYPE": "a"}, "rootfs_type": "b"}, "rootfs_type"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": 1.5}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"vcpus": "2"}, "vcpus"),
        ({"vcpus": 10**30}, "vcpus"),
        ({"memory_mb": []}, "memory_mb"),
        ({"memory_mb": 1e300}, "memory_mb"),
        ({"disk_gb": "2"}, "disk_gb"),
        ({"rootfs_type": 1}, "rootfs_type"),
        ({"rootfs_type": "nothing"}, "rootfs_type"),
        ({"engine": {}}, "engine"),
        ({"engine": "nothing"}, "engine"),
        ({"persistent": "yes"}, "persistent"),
        ({"persistent": 0}, "persistent"),
        ({"no_sleep": True}, "persistent"),
        ({"file_ids": "x"}, "file_ids"),
        ({"workspace_id": 7}, "workspace_id"),
    ],
)
async def test_wrong_values_are_named(client, admin, body, named):
    reply = await client.post(JOBS, content=json.dumps({"script": "echo hi", **body}))
    assert reply.status_code == 400
    assert reply.json()["code"] == "invalid"
    assert named in reply.json()["error"]
    assert not await admin.jobs()


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
        b'{"script": "x", "timeout": NaN}',
        b'{"script": "x", "timeout": Infinity}',
        b"",
        b"script=echo",
    ],
)
async def test_bodies_that_are_no_object(client, content):
    headers = {"Content-Type": "application/json"}
    reply = await client.post(JOBS, content=content, headers=headers)
    assert reply.status_code == 400
    assert set(reply.json()) == {"error", "code"}


async def test_a_script_that_is_too_large(client, admin):
    reply = await submitted(client, script="x" * ((1 << 20) + 1))
    assert reply.status_code == 413
    assert reply.json()["code"] == "too_large"


async def test_a_body_of_unknown_length_is_cut_off(client):
    async def endless():
        yield b'{"script": "'
        for _ in range(64):
            yield b"x" * 65536

    assert (await client.post(JOBS, content=endless())).status_code == 413


async def test_status_of_a_job(client, admin):
    job = await admin.running(name="seen")
    reply = (await client.get(f"{JOBS}/{job.request_id}/status")).json()
    status = JobReply.model_validate(reply)
    assert (status.name, status.status, status.vm_id) == ("seen", "running", job.vm_id)
    assert (status.engine, status.isolation, status.exit_code) == ("fake", "none", 0)
    assert "error" not in reply
    assert (await client.get(f"{JOBS}/seen/status")).json()["request_id"] == job.request_id


async def test_status_of_a_failure(client, admin):
    await admin.run("exit 3", name="a job")
    reply = (await client.get(f"{JOBS}/a%20job/status")).json()
    JobReply.model_validate(reply)
    assert (reply["status"], reply["exit_code"], reply["code"]) == ("error", 3, "script_failed")


async def test_a_long_poll_waits_for_something_newer(client, admin):
    job = await admin.running()
    url = f"{JOBS}/{job.request_id}/status"
    reply = (await client.get(f"{url}?wait=0.01&after={job.generation}")).json()
    assert reply["generation"] == job.generation
    for query in ("wait=60&after=-1", f"wait=60&after={job.generation - 1}", "wait=0"):
        assert (await client.get(f"{url}?{query}")).json()["generation"] == job.generation
    over = await admin.run()
    reply = await client.get(f"{JOBS}/{over.request_id}/status?wait=60")
    assert reply.json()["status"] == "completed"


@pytest.mark.parametrize(
    "query",
    ["wait=61", "wait=-1", "wait=nan", "wait=inf", "wait=x", "wait=1&after=-2", "after=x"],
)
async def test_bad_long_polls(client, admin, query):
    job = await admin.submit()
    reply = await client.get(f"{JOBS}/{job.request_id}/status?{query}")
    assert reply.status_code == 400
    assert reply.json()["error"].split()[0] in ("wait", "after")


async def test_a_long_poll_is_answered_when_the_server_stops(client, admin, waits):
    job = await admin.running()
    waits.stop()
    reply = await client.get(f"{JOBS}/{job.request_id}/status?wait=60&after={job.generation}")
    assert reply.json()["status"] == "running"


@pytest.mark.parametrize(
    "ref", ["nobody", "x" * 129, "a%00b", "%ff%fe", "..%2f..%2fetc", "a%0ab", "😀"]
)
async def test_malformed_and_unknown_ids(client, ref):
    for method, what in [("GET", "status"), ("GET", "logs"), ("POST", "stop")]:
        reply = await client.request(method, f"{JOBS}/{ref}/{what}")
        assert reply.status_code == 404
        assert reply.json()["code"] == "not_found"


async def test_a_list(client, admin):
    for name in ("first", "second"):
        await admin.run(name=name)
    await admin.run("false", name="third")
    reply = (await client.get(f"{JOBS}?page=2&page_size=1")).json()
    JobsReply.model_validate(reply)
    assert (reply["total"], reply["page"], reply["page_size"]) == (3, 2, 1)
    assert [job["name"] for job in reply["jobs"]] == ["second"]
    reply = (await client.get(f"{JOBS}?status=error")).json()
    assert [job["name"] for job in reply["jobs"]] == ["third"]
    assert (await client.get(f"{JOBS}?workspace_id=w")).json()["total"] == 0


@pytest.mark.parametrize(
    "query", ["page=0", "page_size=0", "page_size=101", "page=x", "status=lost", f"page={10**30}"]
)
async def test_bad_lists(client, query):
    reply = await client.get(f"{JOBS}?{query}")
    assert reply.status_code == 400
    assert query.split("=")[0] in reply.json()["error"]


async def test_stop(client, admin):
    """This service answers at once: what was asked for goes on by itself."""
    job = await admin.running()
    url = f"{JOBS}/{job.request_id}/stop"
    assert Stopped.model_validate((await client.post(url)).json()).status == "stopping"
    assert (await admin.until(job.request_id)).exit_code == 143
    reply = (await client.post(url, json={})).json()
    assert Stopped.model_validate(reply).status == "error"


async def test_the_pool(client):
    reply = (await client.get(f"{JOBS}/pool-status")).json()
    pool = PoolStatusReply.model_validate(reply)
    assert pool.total_vms == pool.idle_vms + pool.busy_vms
