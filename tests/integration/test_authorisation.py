"""Who may do what: every operation of the API's document, compared with a table in this file.

An operation that the table does not name fails the first test here, so that no
route is added without someone deciding who may use it.
"""

import itertools
import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import httpx
import pytest

from magsd.api.app import PREFIXES, openapi_json
from tests.api_service import ADMIN, DEADLINE_S, ApiService

DOCUMENT = json.loads(openapi_json())
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
BASE = PREFIXES[0]

ANYBODY = "anybody"
"""Needs no token."""
FROM_HERE = "from here"
"""Needs none on this machine; from elsewhere an admin's."""
ACCOUNT = "account"
"""Any token; concerns its account alone."""
OWNER = "owner"
"""Only who owns the object that the path names; for all others it does not exist."""

NOBODYS = {
    "{ref}": str(uuid.UUID(int=7, version=4)),
    "{token_id}": "tok_0123456789abcdef",
    "{name}": "nobodys-one",
    "{subdomain}": "nobodys-name",
}
WORKSPACE = "the-owners1"
ALIAS = "the-owners22"
"""For each parameter of a path what looks like an id and is none."""


class Case(NamedTuple):
    """Who may use an operation, and how it is asked for."""

    who: str
    body: dict | None = None
    accept: str = "*/*"
    query: dict | None = None


CASES = {
    ("GET", "/healthz"): Case(ANYBODY),
    ("GET", "/readyz"): Case(ANYBODY),
    ("GET", "/version"): Case(ANYBODY),
    ("GET", "/openapi.json"): Case(ANYBODY),
    ("GET", "/docs"): Case(ANYBODY),
    ("GET", "/metrics"): Case(FROM_HERE),
    ("GET", "/internal/ask"): Case(FROM_HERE, query={"domain": f"{ALIAS}.apps.localhost"}),
    ("POST", f"{BASE}/mags-jobs"): Case(ACCOUNT, {"script": "true"}),
    ("GET", f"{BASE}/mags-jobs"): Case(ACCOUNT),
    ("GET", f"{BASE}/mags-jobs/pool-status"): Case(ACCOUNT),
    ("GET", f"{BASE}/mags-jobs/usage"): Case(ACCOUNT),
    ("GET", f"{BASE}/mags-jobs/{{ref}}/status"): Case(OWNER),
    ("GET", f"{BASE}/mags-jobs/{{ref}}/logs"): Case(OWNER),
    ("POST", f"{BASE}/mags-jobs/{{ref}}/stop"): Case(OWNER),
    ("POST", f"{BASE}/mags-jobs/{{ref}}/sync"): Case(OWNER),
    ("POST", f"{BASE}/mags-files"): Case(ACCOUNT, {"no": "form"}),
    ("POST", f"{BASE}/mags-jobs/{{ref}}/exec"): Case(OWNER, {"command": "true"}),
    ("PATCH", f"{BASE}/mags-jobs/{{ref}}"): Case(OWNER, {"no_sleep": False}),
    ("POST", f"{BASE}/mags-jobs/{{ref}}/access"): Case(OWNER, {"port": 80}),
    # It makes a new one; that of another cannot be had, nor be told from a name that is taken.
    ("POST", f"{BASE}/mags-url-aliases"): Case(ACCOUNT, {"no": "alias"}),
    ("GET", f"{BASE}/mags-url-aliases"): Case(ACCOUNT),
    ("DELETE", f"{BASE}/mags-url-aliases/{{subdomain}}"): Case(OWNER),
    ("GET", f"{BASE}/mags-workspaces"): Case(ACCOUNT),
    ("DELETE", f"{BASE}/mags-workspaces/{{name}}"): Case(OWNER),
    ("GET", f"{BASE}/mags-workspaces/{{name}}/versions"): Case(OWNER),
    ("POST", f"{BASE}/mags-workspaces/{{name}}/restore"): Case(OWNER, {"version": 1}),
    ("POST", f"{BASE}/mags-workspaces/{{name}}/fork"): Case(OWNER, {"workspace_id": "forked"}),
    ("GET", f"{BASE}/mags-workspaces/{{name}}/export"): Case(OWNER),
    # It makes a new one, whoever else has one of that name.
    ("POST", f"{BASE}/mags-workspaces/{{name}}/import"): Case(ACCOUNT),
    ("POST", f"{BASE}/mags-gc"): Case(ACCOUNT),
    ("POST", f"{BASE}/tokens"): Case(ACCOUNT, {"name": "made"}),
    ("GET", f"{BASE}/tokens"): Case(ACCOUNT),
    ("GET", f"{BASE}/tokens/{{token_id}}"): Case(OWNER),
    ("DELETE", f"{BASE}/tokens/{{token_id}}"): Case(OWNER),
    ("GET", f"{BASE}/whoami"): Case(ACCOUNT),
}
WITH_TOKEN = [
    (method, path.replace(BASE, prefix), case)
    for (method, path), case in CASES.items()
    for prefix in PREFIXES
    if case.who in (ACCOUNT, OWNER)
]
OF_OWNERS = [one for one in WITH_TOKEN if one[2].who == OWNER]
STREAMS = [
    (method, path, case._replace(accept="text/event-stream"))
    for method, path, case in OF_OWNERS
    if path.endswith("/logs")
]
PATHS = {
    path.replace(BASE, prefix): {method.upper() for method in methods}
    for path, methods in DOCUMENT["paths"].items()
    for prefix in (PREFIXES if path.startswith(BASE) else PREFIXES[:1])
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with ApiService(tmp_path_factory.mktemp("service") / "data").running() as service:
        yield service


@pytest.fixture(scope="module")
def owner(service):
    return service.token(account="owners")


@pytest.fixture(scope="module")
def other(service):
    return service.token(account="others")


@pytest.fixture(scope="module")
def job(service, owner):
    """A job of the owner that goes on for as long as nobody stops it; he has a workspace too, that
    another job has, and an alias of it."""
    with httpx.Client(base_url=service.url, headers=owner.headers, trust_env=False) as client:
        kept = {"script": "true", "workspace_id": WORKSPACE}
        made = client.post(f"{BASE}/mags-jobs", json=kept).json()["request_id"]
        done = client.get(f"{BASE}/mags-jobs/{made}/status?wait=30", timeout=DEADLINE_S).json()
        assert (done["status"], done["workspace_synced"]) == ("completed", True)
        body = {"script": "sleep 3000", "name": "of the owner", "timeout": 3600}
        held = {**body, "name": "holder", "workspace_id": WORKSPACE}
        for each in (held, body):
            reply = client.post(f"{BASE}/mags-jobs", json=each)
            assert reply.status_code == 202, reply.text
        alias = {"subdomain": ALIAS, "workspace_id": WORKSPACE}
        assert client.post(f"{BASE}/mags-url-aliases", json=alias).status_code == 201
    return reply.json()["request_id"]


@pytest.fixture(scope="module")
def expired(service):
    """A token that was good once, and is known for that."""
    ends = datetime.now(UTC) + timedelta(hours=1)
    token = service.token(account="late", expires_at=ends)
    url = f"{service.url}{BASE}/whoami"
    assert httpx.get(url, headers=token.headers, trust_env=False).status_code == 200
    service.clock.ahead = timedelta(hours=2)
    return token


@pytest.fixture(scope="module")
def deleted(service):
    token = service.token(account="gone")
    url = f"{service.url}{BASE}/whoami"
    assert httpx.get(url, headers=token.headers, trust_env=False).status_code == 200
    service.call(service.application.access.delete_token(service.admin, token.token_id))
    return token


@pytest.fixture(scope="module")
def anybody(service):
    with httpx.Client(base_url=service.url, trust_env=False, timeout=DEADLINE_S) as client:
        yield client


def ask(client, method, path, case, **kwargs):
    headers = {"Accept": case.accept, **kwargs.pop("headers", {})}
    return client.request(
        method, path, json=case.body, params=case.query, headers=headers, **kwargs
    )


def named(path, **ids):
    """Return `path` with its parameters filled in, by what looks like an id where none is given."""
    given = {f"{{{name}}}": value for name, value in ids.items()}
    return re.sub(r"\{\w+\}", lambda found: {**NOBODYS, **given}[found[0]], path)


def shown(reply):
    """Return all of a reply that may tell its reader something."""
    headers = {name: value for name, value in reply.headers.items() if name != "date"}
    return reply.status_code, headers, reply.content


def refused(reply, status, code):
    assert reply.status_code == status, reply.text
    assert reply.headers["Content-Type"] == "application/json"
    assert set(reply.json()) == {"error", "code"}
    assert reply.json()["code"] == code
    return shown(reply)


def jobs_of(client, token):
    return client.get(f"{BASE}/mags-jobs?page_size=100", headers=token.headers).json()["total"]


def test_every_operation_is_in_the_table():
    documented = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert documented == set(CASES), "decide who may use what is new, and write it into CASES"


def test_every_parameter_has_something_that_is_nobodys():
    assert {name for _, path in CASES for name in re.findall(r"\{\w+\}", path)} == set(NOBODYS)


def test_the_document_says_the_same():
    for (method, path), case in CASES.items():
        security = DOCUMENT["paths"][path][method.lower()]["security"]
        assert bool(security) == (case.who != ANYBODY), path
        assert ({} in security) == (case.who == FROM_HERE), path


@pytest.mark.parametrize(("method", "path"), [key for key, case in CASES.items()])
def test_what_anybody_may_ask_and_nothing_else(anybody, job, method, path):
    case = CASES[method, path]
    reply = ask(anybody, method, named(path, ref=job), case)
    if case.who in (ANYBODY, FROM_HERE):
        assert reply.status_code == 200
    else:
        refused(reply, 401, "unauthorized")


@pytest.mark.parametrize(("method", "path", "case"), [*WITH_TOKEN, *STREAMS])
def test_without_a_valid_token_nothing_is_done(
    anybody, owner, job, expired, deleted, method, path, case
):
    """Nor is it told whether the object exists, or what is wrong with a token."""
    had = jobs_of(anybody, owner)
    malformed = [
        None, "", "Bearer", "Basic bWFnczp4", owner.secret, f"Token {owner.secret}",
        f"Bearer{owner.secret}",
    ]  # fmt: skip
    unknown = [
        "Bearer mags_0000000000000000000000000000000000000000",
        f"Bearer {owner.secret[:-1]}",
        f"Bearer {owner.secret.upper()}",
        "Bearer \xff\xfe",
        f"Bearer {expired.secret}",
        f"Bearer {deleted.secret}",
    ]
    there = named(path, ref=job, token_id=owner.token_id, name=WORKSPACE, subdomain=ALIAS)
    nowhere = named(path)
    for headers, urls in ((malformed, [there]), (unknown, {there, nowhere})):
        answers = []
        for url, header in itertools.product(urls, headers):
            sent = {} if header is None else {"Authorization": header.encode("latin-1")}
            reply = ask(anybody, method, url, case, headers=sent)
            answers.append(refused(reply, 401, "unauthorized"))
            assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert all(answer == answers[0] for answer in answers)
    assert jobs_of(anybody, owner) == had


@pytest.mark.parametrize(("method", "path", "case"), [*OF_OWNERS, *STREAMS])
def test_what_is_anothers_does_not_exist(anybody, service, owner, other, job, method, path, case):
    names = {
        "ref": [job, "of the owner"],
        "token_id": [owner.token_id],
        "name": [WORKSPACE],
        "subdomain": [ALIAS],
    }
    (parameter,) = re.findall(r"\{(\w+)\}", path)
    for real in names[parameter]:
        # As long, and in all else such a name or id: only that nobody has it.
        invented = NOBODYS[f"{{{parameter}}}"] if real != "of the owner" else "of nobody at all"
        there, nowhere = (
            ask(anybody, method, named(path, **{parameter: ref}), case, headers=other.headers)
            for ref in (real, invented)
        )
        refused(there, 404, "not_found")
        status, headers, content = shown(there)
        swapped = content.replace(real.encode(), invented.encode())
        headers = {**headers, "content-length": str(len(swapped))}
        assert (status, headers, swapped) == shown(nowhere)
    status = anybody.get(f"{BASE}/mags-jobs/{job}/status", headers=owner.headers).json()
    assert status["status"] in ("pending", "running")
    assert anybody.get(f"{BASE}/whoami", headers=owner.headers).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_lists_hold_what_is_the_callers(anybody, service, owner, other, job, prefix):
    theirs = anybody.get(f"{prefix}/mags-jobs", headers=other.headers)
    assert job not in theirs.text
    assert job in anybody.get(f"{prefix}/mags-jobs", headers=owner.headers).text
    tokens = {
        token["id"]: token["account"]
        for token in anybody.get(f"{prefix}/tokens", headers=other.headers).json()["tokens"]
    }
    assert other.token_id in tokens
    assert set(tokens.values()) == {"others"}
    # An admin administers tokens of all accounts; their jobs are no business of his.
    admin = {"Authorization": f"Bearer {ADMIN}"}
    everyones = anybody.get(f"{prefix}/tokens", headers=admin)
    assert {owner.token_id, other.token_id} <= {one["id"] for one in everyones.json()["tokens"]}
    assert owner.secret not in everyones.text
    assert job not in anybody.get(f"{prefix}/mags-jobs", headers=admin).text


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_only_an_admin_may(anybody, owner, other, prefix):
    for extra in ({"account": "owners"}, {"account": "others"}, {"scopes": ["jobs", "admin"]}):
        reply = anybody.post(
            f"{prefix}/tokens", json={"name": "more", **extra}, headers=other.headers
        )
        refused(reply, 400, "invalid")
        assert "admin" in reply.json()["error"]
    made = anybody.post(f"{prefix}/tokens", json={"name": "mine"}, headers=other.headers).json()
    assert (made["account"], made["scopes"]) == ("others", ["jobs"])
    admin = {"Authorization": f"Bearer {ADMIN}"}
    given = anybody.post(
        f"{prefix}/tokens", json={"name": "given", "account": "others"}, headers=admin
    ).json()
    assert given["account"] == "others"
    for one, headers in ((given, other.headers), (made, admin)):
        reply = anybody.delete(f"{prefix}/tokens/{one['id']}", headers=headers)
        assert reply.status_code == 200
        who = {"Authorization": f"Bearer {one['token']}"}
        refused(anybody.get(f"{prefix}/whoami", headers=who), 401, "unauthorized")


@pytest.mark.parametrize(
    "proxy", [{"X-Forwarded-For": "192.0.2.7"}, {"Forwarded": "for=192.0.2.7"}]
)
def test_what_only_this_machine_or_an_admin_may(anybody, other, proxy):
    """A request that a proxy on this machine brought comes from elsewhere."""
    for (method, path), case in CASES.items():
        if case.who == FROM_HERE:
            refused(ask(anybody, method, path, case, headers=proxy), 401, "unauthorized")
            headers = {**proxy, **other.headers}
            refused(ask(anybody, method, path, case, headers=headers), 404, "not_found")
            headers = {**proxy, "Authorization": f"Bearer {ADMIN}"}
            assert ask(anybody, method, path, case, headers=headers).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_refused_and_the_right_ones_named(anybody, owner, job, path):
    url = named(path, ref=job, token_id=owner.token_id, name=WORKSPACE, subdomain=ALIAS)
    for method in METHODS:
        if method in PATHS[path]:
            continue
        reply = anybody.request(method, url, headers=owner.headers)
        assert reply.status_code == 405
        assert set(reply.headers["Allow"].split(", ")) == PATHS[path]
        if method == "HEAD":
            assert reply.content == b""
        else:
            refused(reply, 405, "invalid")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/v1",
        "/api/v3/mags-jobs",
        "/api/v1/mags-jobs/",
        "/API/v1/mags-jobs",
        "/api/v1/healthz",
        "/mags-jobs",
        "//api/v1/whoami",
        "/api/v1/mags-jobs/x/status/",
        "/api/v1/mags-jobs/x%2Fy/status",
        "/api/v1/nothing",
        "/openapi.json/x",
        "/redoc",
    ],
)
def test_what_is_no_route_is_none_for_everybody(anybody, owner, path):
    for headers in ({}, owner.headers):
        for method in METHODS:
            reply = anybody.request(method, path, headers=headers)
            assert reply.status_code == 404
            if method != "HEAD":
                refused(reply, 404, "not_found")
