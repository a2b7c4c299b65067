"""Requests made up from the API's document: what it says is what the service does.

The document is the contract: no status, header or shape of a reply that it
does not name, whatever is asked. What it cannot say (which images there are,
how much this operator gives) is filled in for the requests that must succeed.
"""

import copy
import json
import os
from contextlib import contextmanager

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import Failure

from magsd.api.app import openapi_json
from magsd.api.errors import STATUS_OF
from magsd.model.errors import ErrorCode
from tests.api_service import DEADLINE_S, ApiService

FULL = os.environ.get("MAGS_TEST_FULL") == "1"
EXAMPLES = 500 if FULL else 60
SEED = int(os.environ.get("MAGS_TEST_SEED", "0")) or (
    int.from_bytes(os.urandom(4), "big") if FULL else 1
)
WAIT_MAX_S = 0.2
"""A held request of a job that goes on would otherwise take its minute."""

load_all_checks()
ACCEPTANCE = CHECKS.get_one("positive_data_acceptance")
STATUSES = {status: set() for status in STATUS_OF.values()} | {405: {ErrorCode.INVALID}}
for code, status in STATUS_OF.items():
    STATUSES[status].add(code)

DOCUMENT = json.loads(openapi_json())
PRINTABLE = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"}
POSSIBLE_HERE = {
    "/api/v1/mags-jobs": {
        "script": {"type": "string", "pattern": "^[ -~]{0,40}[!-~]$"},
        "type": {"enum": ["inline", None]},
        "name": PRINTABLE,
        "environment": {
            "type": "object",
            "maxProperties": 3,
            "propertyNames": {"pattern": "^[A-Z]{1,9}$"},
            "additionalProperties": {"type": "string", "pattern": "^[ -~]{0,20}$"},
        },
        "rootfs_type": {"enum": ["standard", None]},
        "engine": {"enum": ["fake", "auto", None]},
        "timeout": {"type": "integer", "minimum": 1, "maximum": 3600},
        "vcpus": {"type": "integer", "minimum": 1, "maximum": 2},
        "memory_mb": {"type": "integer", "minimum": 64, "maximum": 512},
        "disk_gb": {"type": "integer", "minimum": 1, "maximum": 2},
        **dict.fromkeys(("workspace_id", "base_workspace_id", "file_ids")),
        **{
            name: {"enum": [None, False]} for name in ("persistent", "no_sleep", "no_sync", "reset")
        },
        "startup_command": {"enum": [None, "", "true"]},
        "idle_timeout": {"enum": [None, 0]},
    },
    "/api/v1/mags-jobs/{ref}/exec": {
        "command": {"type": "string", "pattern": "^[ -~]{0,40}[!-~]$"},
        "timeout": {"type": "integer", "minimum": 1, "maximum": 2},
    },
    "/api/v1/mags-jobs/{ref}": {
        "no_sleep": {"enum": [None, False]},
        "startup_command": {"enum": [None, "", "true"]},
    },
    "/api/v1/mags-url-aliases": {
        "subdomain": {"type": "string", "pattern": "^[g-z][a-z0-9]{0,20}$"},
        "workspace_id": {"type": "string", "pattern": "^[a-z][a-z0-9]{0,20}$"},
        "domain": {"enum": [None, "apps.magpiecloud.com"]},
        "port": {"enum": [None, 1, 8080, 65535]},
    },
    "/api/v1/tokens": {
        "name": PRINTABLE,
        "account": {"enum": [None]},
        "scopes": {"enum": [["jobs"], ["jobs", "jobs"], None]},
        "expires_at": {"enum": [None, "2999-01-31T12:00:00Z", "2999-01-31T12:00:00.5+05:30"]},
    },
}
"""What this service gives to an ordinary account, by path and field of the body; None: left out,
as what does not exist yet would be taken for something that must be made first."""


IMPOSSIBLE_HERE = (
    "/api/v1/mags-jobs/{ref}/access",
    "/api/v1/mags-jobs/{ref}/sync",
    "/api/v1/mags-workspaces/{name}/import",
)
"""What needs a job that stays, or one with a workspace, or an archive that is one."""


def narrowed():
    """Return the document with what is possible here."""
    document = copy.deepcopy(DOCUMENT)
    for path in IMPOSSIBLE_HERE:
        del document["paths"][path]
    for path, fields in POSSIBLE_HERE.items():
        operation = next(each for each in document["paths"][path].values() if "requestBody" in each)
        body = operation["requestBody"]["content"]["application/json"]
        assert body["schema"]["properties"].keys() == fields.keys(), f"{path} has other fields"
        body["schema"]["properties"] = {name: form for name, form in fields.items() if form}
        for parameter in operation.get("parameters", ()):
            if parameter["name"] == "Idempotency-Key":
                parameter["schema"] = {"type": "string", "pattern": "^[!-~]{1,255}$"}
    return document


def schema_of(document, modes):
    config = {"generation": {"mode": modes, "with-security-parameters": False}}
    return schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(config))


anything = schema_of(DOCUMENT, "all")
possible = schema_of(narrowed(), "positive")


def so_many(examples):
    """Return how many requests there are to be, and nothing of earlier runs."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def errors_have_our_form(_context, response, case):
    """Every error is `{"error", "code"}`, and its code is one of its status."""
    if response.status_code < 400 or case.method == "HEAD":
        return
    reply = response.json()
    is_ours = reply.keys() == {"error", "code"} and bool(reply["error"])
    if not is_ours or reply["code"] not in STATUSES.get(response.status_code, ()):
        raise Failure(
            operation=case.operation.label,
            title="An error that has not our form",
            message=f"{response.status_code}: {response.text[:300]}",
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with ApiService(tmp_path_factory.mktemp("service") / "data").running() as service:
        yield service


@pytest.fixture(scope="module")
def caller(service):
    return service.token(account="random")


def tamed(case, caller):
    """Let no request take a minute, and none delete the token that all of them carry."""
    query, path = case.query or {}, case.path_parameters or {}
    if _is_number(query.get("wait")):
        query["wait"] = min(query["wait"], WAIT_MAX_S)
    if path.get("token_id") == caller.token_id:
        path["token_id"] = "tok_0123456789abcdef"
    return case


def ask(case, service, caller, **checks):
    """Send a request and check the reply."""
    with noted():
        tamed(case, caller).call_and_validate(
            base_url=service.url,
            headers=caller.headers,
            timeout=DEADLINE_S,
            additional_checks=[errors_have_our_form],
            **checks,
        )


@contextmanager
def noted():
    try:
        yield
    except BaseException as error:
        error.add_note(f"to have the same requests again: MAGS_TEST_SEED={SEED}")
        raise


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@anything.parametrize()
@hypothesis.seed(SEED)
@so_many(EXAMPLES)
def test_nothing_that_is_not_documented(case, service, caller):
    ask(case, service, caller, excluded_checks=[ACCEPTANCE])


@possible.parametrize()
@hypothesis.seed(SEED)
@so_many(EXAMPLES)
def test_what_is_possible_is_done(case, service, caller):
    ask(case, service, caller)


def test_what_was_made_is_found_by_its_links_and_gone_when_it_was_deleted(service, caller):
    """Walks from replies to what they name: a job's status, log and stop, a token's end."""
    followed = set()

    class Walk(possible.as_state_machine()):
        def get_call_kwargs(self, _case):
            return {"base_url": service.url, "headers": caller.headers, "timeout": DEADLINE_S}

        def before_call(self, case):
            tamed(case, caller)

        def validate_response(self, response, case, **rest):
            followed.add((case.method, case.operation.path, response.status_code))
            rest["additional_checks"] = [errors_have_our_form]
            super().validate_response(response, case, **rest)

    with noted():
        hypothesis.seed(SEED)(Walk).run(
            settings=settings(so_many(EXAMPLES // 4), stateful_step_count=12)
        )
    job = "/api/v1/mags-jobs/{ref}"
    assert {
        ("GET", f"{job}/status", 200),
        ("GET", f"{job}/logs", 200),
        ("POST", f"{job}/stop", 200),
        ("DELETE", "/api/v1/tokens/{token_id}", 200),
    } <= followed
