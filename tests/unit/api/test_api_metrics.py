"""Who may read what was measured."""

import httpx
import pytest

from magsd.aio import SystemClock
from magsd.api.app import create_app
from magsd.metrics import Metrics


@pytest.fixture
def app(application):
    metrics = Metrics()
    metrics.job_submitted("gvisor")
    return create_app(application, SystemClock(), metrics=metrics)


def client_at(app, host, **headers):
    transport = httpx.ASGITransport(app=app, client=(host, 4000))
    return httpx.AsyncClient(transport=transport, base_url="http://mags", headers=headers)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_needs_no_token(app, host):
    async with client_at(app, host) as client:
        reply = await client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert 'mags_jobs_submitted_total{engine="gvisor"} 1.0' in reply.text


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "", "unknown"])
async def test_others_need_one(app, host):
    async with client_at(app, host) as client:
        reply = await client.get("/metrics")
    assert reply.status_code == 401
    assert reply.json()["code"] == "unauthorized"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"])
async def test_a_proxy_on_this_machine_is_not_this_machine(app, header):
    async with client_at(app, "127.0.0.1", **{header: "127.0.0.1"}) as client:
        reply = await client.get("/metrics")
    assert reply.status_code == 401


async def test_an_admin_reads_them_from_anywhere(app, admin):
    async with client_at(app, "192.0.2.1", **admin.headers) as client:
        assert (await client.get("/metrics")).status_code == 200


async def test_for_other_tokens_there_is_nothing(app, stranger):
    async with client_at(app, "192.0.2.1", **stranger.headers) as client:
        reply = await client.get("/metrics")
    assert reply.status_code == 404
    assert reply.json()["code"] == "not_found"
