"""What is granted, across restarts: rows that stay, and rows that go."""

import base64
import hashlib
from datetime import timedelta

from cryptography.hazmat.primitives import serialization

from magsd.aio import SystemClock
from magsd.db import grants
from magsd.model.grants import KEY_TIME, GrantKind


class AheadClock(SystemClock):
    """The host's clock, put forward."""

    ahead = timedelta()

    def now(self):
        return super().now() + self.ahead


def fingerprint(access) -> str:
    key = serialization.load_ssh_private_key(access.private_key.encode(), None)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


async def rows(service):
    return await service.database.read(grants.all_grants)


def name_of(job):
    return f"{job.subdomain}.apps.localhost"


async def test_what_is_granted_outlives_a_restart(service):
    job = await service.running("sleep 3000", persistent=True, workspace_id="box")
    doors = service.app.doors
    await doors.grants.open_url(service.principal, job.request_id, 3000)
    key = fingerprint(await doors.grants.open_ssh(service.principal, job.request_id))
    await doors.aliases.create(service.principal, "alias", "box", 4000)
    await service.restart()
    doors = service.app.doors
    assert doors.find_url(name_of(job)) == (job.request_id, 3000)
    assert doors.find_url("alias.apps.localhost") == (job.request_id, 4000)
    assert (await doors.find_key(key))[0] == job.request_id
    assert [alias.subdomain for alias in doors.aliases.listed(service.principal)] == ["alias"]


async def test_what_ended_leaves_no_rows(service):
    job = await service.running("sleep 3000", persistent=True)
    other = await service.running("sleep 3000", persistent=True)
    opened = service.app.doors.grants
    for each in (job, other):
        await opened.open_url(service.principal, each.request_id, 80)
        await opened.open_ssh(service.principal, each.request_id)
    await service.app.stop(service.principal, job.request_id)
    await opened.tidy()
    assert {grant.request_id for grant in await rows(service)} == {other.request_id}
    # The rows of what ends while nobody tidies are gone after the next start.
    await service.app.stop(service.principal, other.request_id)
    await service.restart()
    assert await rows(service) == []


async def test_a_token_that_goes_takes_its_grants_along(service):
    job = await service.running("sleep 3000", persistent=True)
    access = service.app.access
    record, secret = await access.create_token(service.principal, name="short")
    short = await access.authenticate(secret)
    opened = service.app.doors.grants
    await opened.open_url(short, job.request_id, 80)
    await opened.open_ssh(service.principal, job.request_id)
    await access.delete_token(service.principal, record.token_id)
    assert service.app.doors.find_url(name_of(job)) is None
    await opened.tidy()
    assert [grant.kind for grant in await rows(service)] == [GrantKind.SSH]


async def test_the_time_of_a_key_begins_anew_and_is_written_down(service):
    service.clock = AheadClock()
    await service.restart()
    job = await service.running("sleep 3000", persistent=True)
    doors = service.app.doors
    used, unused = [
        fingerprint(await doors.grants.open_ssh(service.principal, job.request_id))
        for _ in range(2)
    ]
    service.clock.ahead += KEY_TIME - timedelta(minutes=1)
    assert await doors.find_key(used)
    await service.restart()
    doors = service.app.doors
    service.clock.ahead += timedelta(minutes=2)
    assert await doors.find_key(used)
    assert await doors.find_key(unused) is None
    await doors.grants.tidy()
    assert [grant.fingerprint for grant in await rows(service)] == [used]
    service.clock.ahead += KEY_TIME + timedelta(minutes=1)
    assert await doors.find_key(used) is None


async def test_there_are_as_many_rows_as_keys(service):
    job = await service.running("sleep 3000", persistent=True)
    opened = service.app.doors.grants
    keys = [
        fingerprint(await opened.open_ssh(service.principal, job.request_id)) for _ in range(34)
    ]
    await opened.open_url(service.principal, job.request_id, 80)
    await opened.open_url(service.principal, job.request_id, 81)
    kept = await rows(service)
    assert [grant.fingerprint for grant in kept if grant.fingerprint] == keys[2:]
    assert [grant.port for grant in kept if not grant.fingerprint] == [81]
