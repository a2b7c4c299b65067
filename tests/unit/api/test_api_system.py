"""Public routes, the documents, and errors that no route raises."""

import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from magsd import __version__, config
from magsd.aio import SystemClock
from magsd.api import errors, system
from magsd.api.app import create_app, openapi_json
from magsd.api.schemas import EngineReply
from magsd.engine.fake.engine import FakeEngine, FakeSettings
from magsd.engine.fake.faults import Fault, FaultPlan
from magsd.model.errors import LaunchError
from tests.api_service import opened

DOCS = Path(__file__).parents[3] / "docs/reference"


async def test_health_and_version(anybody):
    assert (await anybody.get("/healthz")).json() == {"status": "ok"}
    version = (await anybody.get("/version")).json()
    assert version == {
        "name": "magsd",
        "version": __version__,
        "api": ["v1", "v2"],
        "engines": [{"name": "fake", "isolation": "none"}],
    }


@pytest.mark.parametrize(("accelerator", "is_untested"), [("kvm", True), ("tcg", False)])
def test_kvm_is_called_untested_where_it_is_used(accelerator, is_untested):
    fake = FakeEngine(FakeSettings(Path("/nowhere")), SystemClock()).capabilities
    engine = replace(fake, name="qemu", isolation="microvm", accelerator=accelerator)
    reply = system.engine_reply(engine)
    assert EngineReply(**reply).accelerator == accelerator
    assert ("untested" in reply.get("remark", "")) is is_untested


async def test_readiness(anybody):
    assert (await anybody.get("/readyz")).json() == {"status": "ready"}


async def test_what_keeps_scripts_from_running_is_told(tmp_path):
    faults = FaultPlan()
    faults.add("prepare", Fault(error=LaunchError("the engine is not there: install it")))
    async with opened(tmp_path, SystemClock(), faults) as application:
        transport = httpx.ASGITransport(app=create_app(application, SystemClock()))
        async with httpx.AsyncClient(transport=transport, base_url="http://mags") as client:
            reply = await client.get("/readyz")
    assert reply.status_code == 503
    assert reply.json() == {"error": "the engine is not there: install it", "code": "capacity"}
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


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/healthz", "GET"), ("/api/v1/mags-jobs", "GET, POST"), ("/api/v2/tokens/x", "GET, DELETE")],
)
async def test_all_methods_that_are_possible_are_named(anybody, path, allowed):
    """Those of one path are several routes to the framework."""
    for method in ("PUT", "OPTIONS", "BREW"):
        reply = await anybody.request(method, path)
        assert reply.headers["Allow"] == allowed
        assert reply.json()["error"] == f"{method} is not possible here; use {allowed}"


async def test_a_fault_is_a_500_with_a_reference_into_the_log(caplog):
    app = FastAPI()
    errors.install(app)

    @app.get("/fault")
    async def fault():
        return {}["a secret"]

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mags") as client:
        reply = await client.get("/fault")
    assert reply.status_code == 500
    assert reply.json()["code"] == "internal"
    reference = reply.json()["error"].split()[-1]
    assert reference in caplog.text
    assert "secret" not in reply.text


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
