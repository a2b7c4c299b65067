"""Public routes, the documents, and errors that no route raises."""

import json
import re
from pathlib import Path

import httpx
import pytest

from magsd import __version__, config
from magsd.api.app import openapi_json

DOCS = Path(__file__).parents[3] / "docs/reference"


async def test_health_and_version(anybody):
    assert (await anybody.get("/healthz")).json() == {"status": "ok"}
    version = (await anybody.get("/version")).json()
    assert version == {"name": "magsd", "version": __version__, "api": ["v1", "v2"]}


async def test_readiness(anybody, book):
    assert (await anybody.get("/readyz")).json() == {"status": "ready"}
    book.unready = "there is no image: run `magsd image build standard`"
    reply = await anybody.get("/readyz")
    assert reply.status_code == 503
    assert reply.json() == {"error": book.unready, "code": "capacity"}
    assert reply.headers["Retry-After"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v3/mags-jobs", 404),
        ("GET", "/api/v1/mags-jobs/", 404),
        ("DELETE", "/api/v1/mags-jobs", 405),
        ("POST", "/healthz", 405),
        ("PUT", "/api/v2/mags-jobs/x/status", 405),
    ],
)
async def test_errors_of_the_framework_have_our_form(client, method, path, status):
    reply = await client.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()) == {"error", "code"}


async def test_a_fault_is_a_500_with_a_reference_into_the_log(client, book, caplog):
    book.jobs = None
    reply = await client.get("/api/v1/mags-jobs/x/status")
    assert reply.status_code == 500
    assert reply.json()["code"] == "internal"
    reference = reply.json()["error"].split()[-1]
    assert reference in caplog.text
    assert "NoneType" not in reply.text


async def test_the_document_is_served_and_committed(anybody):
    served = await anybody.get("/openapi.json")
    assert served.json()["openapi"].startswith("3.")
    assert served.text == openapi_json()
    committed = (DOCS / "openapi.json").read_text(encoding="utf-8")
    assert committed == openapi_json(), "run tools/write_openapi.py"


def test_the_reference_of_settings_is_committed():
    committed = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert committed == config.reference(), "run tools/write_openapi.py"


def test_every_reference_inside_the_document_leads_somewhere():
    text = openapi_json()
    schemas = json.loads(text)["components"]["schemas"]
    references = set(re.findall(r'"\$ref": "([^"]+)"', text))
    assert references == {f"#/components/schemas/{name}" for name in schemas}


async def test_the_page_needs_nothing_from_elsewhere(anybody):
    reply = await anybody.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|@import|url\(|src=", reply.text)
    for path in json.loads(openapi_json())["paths"]:
        assert path in reply.text


async def test_names_in_replies_are_always_sendable(app, admin, book):
    book.add(admin.principal, name="half \ud800")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mags") as client:
        reply = await client.get("/api/v1/mags-jobs", headers=admin.headers)
    assert reply.json()["jobs"][0]["name"] == "half ?"
