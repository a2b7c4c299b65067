"""Requests that cannot be carried out, and what they are told."""

import json
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server


def _submit(server: Server, **request: Any) -> httpx.Response:
    with server.http() as http:
        return http.post("/mags-jobs", **request)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b"\xff", 400, "UTF-8"),
        (b"{}", 400, "script"),
        (b'{"script": ""}', 400, "script"),
        (b'{"script": "  \\n "}', 400, "script"),
        (b'{"script": 5}', 400, "script"),
        (b'{"script": null}', 400, "script"),
        (b'{"script": "true", "environment": {"A": 1}}', 400, "environment"),
        (b'{"script": "true", "environment": []}', 400, "environment"),
        (b'{"script": "true", "type": "file"}', 400, "type"),
        (b'{"script": "true", "name": ""}', 400, "name"),
        (b'{"script": "true", "disk_gb": 0}', 400, "disk_gb"),
        (b'{"script": "true", "disk_gb": "2"}', 400, "disk_gb"),
        (b'{"script": "true", "timeout": 0}', 400, "timeout"),
        (b'{"script": "true", "memory_mb": 1e99}', 400, "memory_mb"),
        (b'{"script": "true", "vcpus": 10000}', 400, "vcpus"),
        (b'{"script": "true", "persistent": "yes"}', 400, "persistent"),
        (b'{"script": "true", "rootfs_type": "windows"}', 400, "standard"),
        (b'{"script": "true", "engine": "docker"}', 400, "gvisor"),
    ],
)
def test_a_bad_submit(server: Server, body: bytes, status: int, words: str) -> None:
    reply = _submit(server, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]
    assert reply.json()["code"] == "invalid"


def test_a_script_that_is_too_large(server: Server) -> None:
    for size in ((1 << 20) + 1, 10 << 20):
        reply = _submit(server, json={"script": "#" * size})
        assert reply.status_code == 413
        assert reply.json()["code"] == "too_large"
    assert _submit(server, json={"script": "#" * (1 << 20)}).status_code == 202


def test_unknown_fields_are_told(server: Server) -> None:
    reply = _submit(server, json={"script": "true", "flavour": "vanilla"})
    assert reply.status_code == 202
    assert "flavour" in json.dumps(reply.json()["warnings"])
    log = server.final(reply.json()["request_id"]) and server.log_entries(
        reply.json()["request_id"], source="system"
    )
    assert any("flavour" in entry["message"] for entry in log)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic"}])
def test_without_a_token(server: Server, headers: dict[str, str]) -> None:
    reply = httpx.post(f"{server.url}/api/v1/mags-jobs", content=b"{", headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")


def test_what_is_not_there(server: Server) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    with server.http() as http:
        for path in (f"/mags-jobs/{unknown}/status", "/mags-jobs/nobody/logs", "/nothing"):
            reply = http.get(path)
            assert (reply.status_code, reply.json()["code"]) == (404, "not_found"), path
        assert http.post(f"/mags-jobs/{unknown}/stop").status_code == 404
        assert http.delete("/mags-jobs").status_code == 405


def test_another_accounts_job_is_not_there(server: Server) -> None:
    job = server.submit("true")
    server.final(job)
    with server.http() as http:
        reply = http.post("/tokens", json={"name": "other", "account": "somebody-else"})
        assert reply.status_code == 201, reply.text
    with server.http(reply.json()["token"]) as http:
        for method, path in (("GET", "status"), ("GET", "logs"), ("POST", "stop")):
            reply = http.request(method, f"/mags-jobs/{job}/{path}")
            assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
        assert http.get("/mags-jobs").json()["total"] == 0
        assert http.get("/whoami").json()["account"] == "somebody-else"
