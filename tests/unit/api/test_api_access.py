"""Who may ask what: every route of the document, and tokens."""

import json

import pytest

from magsd.api import system
from magsd.api.app import PREFIXES, ROUTERS, openapi_json
from magsd.api.document import OPEN_HERE, PUBLIC
from magsd.api.schemas import NewToken, TokensReply, Whoami

DOCUMENT = json.loads(openapi_json())
NAMES = dict.fromkeys(("ref", "token_id", "name", "subdomain"), "x")
ROUTES = [
    (method.upper(), path.replace(PREFIXES[0], prefix).format(**NAMES))
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    for prefix in (PREFIXES if path.startswith(PREFIXES[0]) else PREFIXES[:1])
]


def is_public(path):
    return path in PUBLIC | OPEN_HERE


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if not is_public(r[1])])
async def test_every_route_but_the_public_needs_a_token(anybody, method, path):
    for header in (None, "Bearer", "Bearer ", "Bearer mags_wrong", "Basic bWFnczp4", "x"):
        headers = {} if header is None else {"Authorization": header}
        reply = await anybody.request(method, path, headers=headers, content=b"not json")
        assert reply.status_code == 401
        assert reply.json()["code"] == "unauthorized"
        assert reply.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if is_public(r[1])])
async def test_public_routes_need_none(anybody, method, path):
    expected = 400 if path == "/internal/ask" else 200  # A domain is missing, not a token.
    assert (await anybody.request(method, path)).status_code == expected


def test_the_document_has_every_route():
    documented = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    routed = [(PREFIXES[0], route) for router in ROUTERS for route in router.routes]
    routed += [("", route) for route in system.router.routes]
    assert documented == {
        (method, prefix + route.path_format) for prefix, route in routed for method in route.methods
    }


async def test_the_scheme_of_the_header_may_be_of_any_case(anybody, admin):
    headers = {"Authorization": f"bearer {admin.secret}"}
    assert (await anybody.get("/api/v1/whoami", headers=headers)).status_code == 200


async def test_a_stranger_does_not_see_a_job(client, anybody, admin, stranger):
    job = await admin.running()
    for method, path in [("GET", "status"), ("GET", "logs"), ("POST", "stop")]:
        url = f"/api/v1/mags-jobs/{job.request_id}/{path}"
        reply = await anybody.request(method, url, headers=stranger.headers)
        assert reply.status_code == 404
        assert reply.json()["code"] == "not_found"
        assert (await client.request(method, url)).status_code == 200
    reply = await anybody.get("/api/v1/mags-jobs", headers=stranger.headers)
    assert reply.json()["total"] == 0


async def test_the_life_of_a_token(client, anybody, admin):
    reply = await client.post(
        "/api/v1/tokens",
        json={"name": "ci", "account": "acme", "expires_at": "2999-01-01T00:00:00Z"},
    )
    assert reply.status_code == 201
    made = NewToken.model_validate(reply.json())
    assert (made.account, made.scopes) == ("acme", ["jobs"])
    headers = {"Authorization": f"Bearer {made.token}"}
    who = (await anybody.get("/api/v1/whoami", headers=headers)).json()
    assert Whoami.model_validate(who).account == "acme"
    listed = TokensReply.model_validate((await client.get("/api/v1/tokens")).json())
    assert {made.id, admin.principal.token_id} <= {token.id for token in listed.tokens}
    assert listed.total == len(listed.tokens)
    assert made.token not in (await client.get("/api/v1/tokens")).text
    reply = await client.delete(f"/api/v1/tokens/{made.id}")
    assert reply.json()["success"] is True
    assert (await anybody.get("/api/v1/whoami", headers=headers)).status_code == 401
    assert (await client.delete(f"/api/v1/tokens/{made.id}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "name"),
        ({"name": 5}, "name"),
        ({"name": " "}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"name": "x", "account": "a\0"}, "account"),
        ({"name": "x", "scopes": ["root"]}, "root"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": "jobs"}, "scopes"),
        ({"name": "x", "expires_at": "tomorrow"}, "expires_at"),
        ({"name": "x", "expires_at": 1234567890}, "expires_at"),
        ({"name": "x", "expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"name": "x", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires_at": "9999-12-31T23:59:59-01:00"}, "expires_at"),
        ({"name": "x", "expires_at": "0001-01-01T00:00:00+01:00"}, "expires_at"),
        ({"name": "x", "surprise": 1}, "surprise"),
    ],
)
async def test_bad_token_requests(client, body, named):
    reply = await client.post("/api/v1/tokens", content=json.dumps(body))
    assert reply.status_code == 400
    assert reply.json()["code"] == "invalid"
    assert named in reply.json()["error"]


async def test_times_of_any_zone_are_told_in_utc(client):
    body = {"name": "x", "expires_at": "2999-01-31T12:00:00.5+05:30"}
    made = (await client.post("/api/v1/tokens", json=body)).json()
    assert made["expires_at"] == "2999-01-31T06:30:00.500Z"
    listed = (await client.get("/api/v1/tokens")).json()["tokens"]
    (token,) = [token for token in listed if token["id"] == made["id"]]
    assert token["expires_at"] == made["expires_at"]


async def test_an_ordinary_token_makes_none_for_others(anybody, stranger):
    for extra in ({"account": "default"}, {"scopes": ["admin"]}):
        body = {"name": "x", **extra}
        reply = await anybody.post("/api/v1/tokens", json=body, headers=stranger.headers)
        assert reply.status_code == 400
    reply = await anybody.post("/api/v1/tokens", json={"name": "x"}, headers=stranger.headers)
    assert reply.json()["account"] == stranger.principal.account
