"""Routes of ways into VMs: access, aliases, and what a proxy may ask."""

import base64
import hashlib

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization

from magsd.api.access_schemas import AliasesReply, NewAlias, SshOpened, UrlOpened

JOBS = "/api/v1/mags-jobs"
ALIASES = "/api/v1/mags-url-aliases"


@pytest_asyncio.fixture(loop_scope="session")
async def job(admin):
    """One that runs, whose VM stays."""
    job = await admin.running(persistent=True)
    yield job
    await admin.application.stop(admin.principal, job.request_id)


@pytest.fixture
def doors(admin):
    return admin.application.doors


@pytest.fixture
def access(client, job):
    async def ask(ref=job.request_id, **body):
        return await client.post(f"{JOBS}/{ref}/access", json=body)

    return ask


def fingerprint(private_key: str) -> str:
    """Return the fingerprint as OpenSSH has it, of the public half of a key."""
    key = serialization.load_ssh_private_key(private_key.encode(), None)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


async def stopped(admin, job):
    await admin.application.stop(admin.principal, job.request_id)
    await admin.until(job.request_id)


# --- URLs ------------------------------------------------------------------------


async def test_a_port_is_published(access, doors, job):
    assert doors.find_url(f"{job.subdomain}.apps.localhost") is None
    reply = await access(port=3000)
    assert reply.status_code == 200
    UrlOpened.model_validate(reply.json())
    assert reply.json() == {
        "success": True,
        "message": "External access enabled",
        "url": job.url,
        "subdomain": job.subdomain,
        "port": 3000,
        "ipv6_address": None,
        "access_type": "http_proxy",
    }
    for domain in ("apps.localhost", "apps.magpiecloud.com"):
        assert doors.find_url(f"{job.subdomain}.{domain}") == (job.request_id, 3000)


async def test_the_last_port_counts_and_8080_is_the_usual_one(access, doors, job):
    for body, port in (
        ({"port": 1}, 1),
        ({}, 8080),
        ({"port": 65535}, 65535),
        ({"port": None}, 8080),
    ):
        assert (await access(**body)).json()["port"] == port
        assert doors.find_url(f"{job.subdomain}.apps.localhost") == (job.request_id, port)


async def test_a_name_will_do_and_unknown_fields_are_told(client, admin):
    job = await admin.running(persistent=True, name="published")
    reply = await client.post(f"{JOBS}/published/access", json={"port": 80, "hello": 1})
    assert reply.json()["subdomain"] == job.subdomain
    assert reply.json()["warnings"] == ["unknown field 'hello' was ignored"]
    await admin.application.stop(admin.principal, job.request_id)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"port": 0}, "port must be at least 1"),
        ({"port": 65536}, "port must be at most 65535"),
        ({"port": "80"}, "port must be an integer"),
        ({"port": True}, "port must be an integer"),
        ({"visibility": "private"}, "visibility"),
    ],
)
async def test_what_cannot_be_asked_for(access, doors, job, body, told):
    reply = await access(**body)
    assert reply.status_code == 400
    assert told in reply.json()["error"]
    assert doors.find_url(f"{job.subdomain}.apps.localhost") is None


@pytest.mark.parametrize("port", [80, 22])
async def test_only_persistent_jobs_have_ways_in(client, admin, port):
    job = await admin.running()
    reply = await client.post(f"{JOBS}/{job.request_id}/access", json={"port": port})
    assert reply.status_code == 400
    assert "persistent" in reply.json()["error"]
    await admin.application.stop(admin.principal, job.request_id)


@pytest.mark.parametrize("port", [80, 22])
async def test_a_job_that_is_over_has_none(client, admin, port):
    job = await admin.running(persistent=True)
    await stopped(admin, job)
    reply = await client.post(f"{JOBS}/{job.request_id}/access", json={"port": port})
    assert reply.status_code == 409
    assert "submit it again" in reply.json()["error"]


async def test_a_stop_ends_all_ways(access, doors, admin, job):
    key = (await access(port=22)).json()["ssh_private_key"]
    await access(port=80)
    await stopped(admin, job)
    assert doors.find_url(f"{job.subdomain}.apps.localhost") is None
    assert await doors.find_key(fingerprint(key)) is None


# --- SSH -------------------------------------------------------------------------


async def test_a_key_opens_the_job_and_is_new_each_time(access, doors, job):
    replies = [await access(port=22) for _ in range(2)]
    keys = [reply.json()["ssh_private_key"] for reply in replies]
    assert len(set(keys)) == 2
    for reply in replies:
        assert reply.headers["Cache-Control"] == "no-store"
        SshOpened.model_validate(reply.json())
        told = {**reply.json()}
        assert told.pop("ssh_private_key").startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        assert told == {
            "success": True,
            "message": "SSH proxy enabled",
            "ssh_host": "127.0.0.1",
            "ssh_port": 7022,
            "access_type": "ssh_proxy",
        }
    for key in keys:
        request_id, environment = await doors.find_key(fingerprint(key))
        assert request_id == job.request_id
        assert environment["HOME"] == "/root"
    assert await doors.find_key("SHA256:other") is None
    assert doors.find_url(f"{job.subdomain}.apps.localhost") is None


async def test_of_33_keys_the_oldest_is_gone(access, doors):
    keys = [fingerprint((await access(port=22)).json()["ssh_private_key"]) for _ in range(33)]
    assert [await doors.find_key(key) is not None for key in keys] == [False] + [True] * 32


async def test_what_a_token_opened_ends_with_it(client, admin, doors, job):
    made = (await client.post("/api/v1/tokens", json={"name": "soon gone"})).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    path = f"{JOBS}/{job.request_id}/access"
    other = fingerprint((await client.post(path, json={"port": 22})).json()["ssh_private_key"])
    reply = await client.post(path, json={"port": 22}, headers=headers)
    key = fingerprint(reply.json()["ssh_private_key"])
    await client.post(path, json={"port": 80}, headers=headers)
    assert await doors.find_key(key)
    await client.delete(f"/api/v1/tokens/{made['id']}")
    assert await doors.find_key(key) is None
    assert doors.find_url(f"{job.subdomain}.apps.localhost") is None
    assert await doors.find_key(other)


# --- aliases ---------------------------------------------------------------------


async def test_an_alias_leads_to_the_workspaces_job(client, admin, doors):
    body = {"subdomain": "My-App", "workspace_id": "aliased", "domain": "apps.magpiecloud.com"}
    reply = await client.post(ALIASES, json=body)
    assert reply.status_code == 201
    NewAlias.model_validate(reply.json())
    assert {**reply.json(), "created_at": None} == {
        "id": "my-app",
        "subdomain": "my-app",
        "workspace_id": "aliased",
        "domain": "apps.localhost",
        "port": 8080,
        "url": "http://my-app.apps.localhost:7071",
        "created_at": None,
    }
    assert doors.find_url("my-app.apps.localhost") is None
    job = await admin.running(persistent=True, workspace_id="aliased")
    assert doors.find_url("my-app.apps.localhost") == (job.request_id, 8080)
    await client.post(f"{JOBS}/{job.request_id}/access", json={"port": 3000})
    second = await client.post(ALIASES, json={"subdomain": "second", "workspace_id": "aliased"})
    assert second.json()["port"] == 3000
    third = {"subdomain": "third", "workspace_id": "aliased", "port": 9}
    assert (await client.post(ALIASES, json=third)).json()["port"] == 9
    listed = (await client.get(ALIASES)).json()
    AliasesReply.model_validate(listed)
    assert [each["subdomain"] for each in listed["aliases"]] == ["my-app", "second", "third"]
    assert listed["total"] == 3
    for name in ("MY-APP", "second", "third"):
        assert (await client.delete(f"{ALIASES}/{name}")).status_code == 200
    assert (await client.get(ALIASES)).json() == {"aliases": [], "total": 0}
    assert doors.find_url("my-app.apps.localhost") is None
    await admin.application.stop(admin.principal, job.request_id)


async def test_a_name_is_taken_for_all_accounts(client, stranger):
    body = {"subdomain": "taken", "workspace_id": "w"}
    assert (await client.post(ALIASES, json=body)).status_code == 201
    for headers in ({}, stranger.headers):
        reply = await client.post(ALIASES, json=body, headers=headers)
        assert reply.status_code == 409
        assert "already" in reply.json()["error"]
    assert (await client.delete(f"{ALIASES}/taken", headers=stranger.headers)).status_code == 404
    assert (await client.delete(f"{ALIASES}/taken")).status_code == 200
    assert (await client.delete(f"{ALIASES}/taken")).status_code == 404
    assert (await client.post(ALIASES, json=body, headers=stranger.headers)).status_code == 201
    assert (await client.delete(f"{ALIASES}/taken", headers=stranger.headers)).status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"workspace_id": "w"}, "subdomain is required"),
        ({"subdomain": "a"}, "workspace_id is required"),
        ({"subdomain": "a.b", "workspace_id": "w"}, "subdomain"),
        ({"subdomain": "0123456789ab", "workspace_id": "w"}, "12 hex digits"),
        ({"subdomain": "a", "workspace_id": "no name"}, "workspace_id"),
        ({"subdomain": "a", "workspace_id": "w", "port": 0}, "port"),
    ],
)
async def test_what_is_no_alias(client, body, told):
    reply = await client.post(ALIASES, json=body)
    assert reply.status_code == 400
    assert told in reply.json()["error"]


# --- what a proxy may ask ----------------------------------------------------------


async def test_a_proxy_learns_which_names_are_ours(anybody, access, job):
    async def ask(domain):
        return (await anybody.get("/internal/ask", params={"domain": domain})).status_code

    name = f"{job.subdomain}.apps.localhost"
    assert await ask(name) == 404
    await access(port=80)
    assert await ask(name) == 200
    assert await ask(f"{name.upper()}.") == 200
    assert await ask("apps.localhost") == 404
    assert await ask("evil.example") == 404
