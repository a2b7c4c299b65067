"""From records to JSON, without a server: every field, and that the document describes them."""

import dataclasses
import json
from datetime import UTC, datetime

from magsd.api import render
from magsd.api.errors import json_response
from magsd.api.schemas import Entry, JobReply, JobsReply, TokenReply
from magsd.model.errors import JobCode
from magsd.model.lifecycle import Status
from magsd.model.names import AccountId, RequestId, Subdomain, TokenId
from magsd.model.records import JobPage, JobStatus, LogLine, LogSource, Scope, TokenRecord

NOW = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)
RUNNING = JobStatus(
    request_id=RequestId("8e6b5a0c-0000-4000-8000-000000000000"),
    account_id=AccountId("acc_0123456789abcdef"),
    name="a job",
    status=Status.RUNNING,
    vm_id="0123abcd",
    workspace_id=None,
    persistent=False,
    no_sleep=False,
    subdomain=Subdomain("0123456789ab"),
    url="http://0123456789ab.apps.localhost:7071",
    exit_code=0,
    queue_duration_ms=1,
    acquire_duration_ms=20,
    script_duration_ms=0,
    created_at=NOW,
    started_at=NOW,
    completed_at=None,
    error=None,
    code=None,
    engine="gvisor",
    isolation="application-kernel",
    generation=2,
)


def sent(content):
    """Return what a client reads of a reply."""
    return json.loads(json_response(content).body)


def test_a_status():
    reply = sent(render.status(RUNNING))
    JobReply.model_validate(reply)
    assert reply == {
        "request_id": "8e6b5a0c-0000-4000-8000-000000000000",
        "name": "a job",
        "status": "running",
        "vm_id": "0123abcd",
        "workspace_id": None,
        "persistent": False,
        "no_sleep": False,
        "subdomain": "0123456789ab",
        "url": "http://0123456789ab.apps.localhost:7071",
        "sleeping": False,
        "exit_code": 0,
        "queue_duration_ms": 1,
        "acquire_duration_ms": 20,
        "script_duration_ms": 0,
        "created_at": "2026-01-31T12:00:00.250Z",
        "started_at": "2026-01-31T12:00:00.250Z",
        "completed_at": None,
        "engine": "gvisor",
        "isolation": "application-kernel",
        "generation": 2,
    }


def test_a_job_whose_vm_stays():
    stays = dataclasses.replace(RUNNING, persistent=True)
    reply = sent(render.status(stays))
    JobReply.model_validate(reply)
    assert (reply["persistent"], reply["script_ended_at"]) == (True, None)
    over = dataclasses.replace(stays, exit_code=3, script_ended_at=NOW)
    reply = sent(render.status(over))
    JobReply.model_validate(reply)
    assert (reply["status"], reply["exit_code"]) == ("running", 3)
    assert reply["script_ended_at"] == "2026-01-31T12:00:00.250Z"


def test_a_failure():
    failed = dataclasses.replace(
        RUNNING,
        status=Status.ERROR,
        exit_code=None,
        error="no VM came up",
        code=JobCode.LAUNCH_FAILED,
    )
    reply = sent(render.status(failed))
    JobReply.model_validate(reply)
    assert reply["exit_code"] is None
    assert (reply["error"], reply["code"]) == ("no VM came up", "launch_failed")


def test_a_page():
    reply = sent(render.page(JobPage((RUNNING,), total=7, page=2, page_size=1)))
    JobsReply.model_validate(reply)
    assert (reply["total"], reply["page"], reply["page_size"]) == (7, 2, 1)
    assert reply["jobs"][0]["job_id"] == reply["jobs"][0]["request_id"] == RUNNING.request_id


def test_a_line():
    line = LogLine(NOW, LogSource.STDERR, 'a "line" \u2028 ä', 20)
    assert sent(render.line(line, with_seq=False)) == {
        "timestamp": "2026-01-31T12:00:00.250Z",
        "level": "error",
        "message": 'a "line" \u2028 ä',
        "source": "stderr",
    }
    reply = sent(render.line(line, with_seq=True))
    assert Entry.model_validate(reply).seq == 20


def test_a_token():
    scopes = frozenset({Scope.JOBS, Scope.ADMIN})
    record = TokenRecord(
        TokenId("tok_0123456789abcdef"), RUNNING.account_id, "acme", "ci", scopes, NOW, None, NOW
    )
    reply = sent(render.token(record))
    TokenReply.model_validate(reply)
    assert reply["scopes"] == ["admin", "jobs"]
    assert reply["expires_at"] is None


def test_half_a_character_leaves_as_what_it_cannot_be():
    halved = dataclasses.replace(RUNNING, name="half \ud800")
    assert sent(render.status(halved))["name"] == "half ?"
