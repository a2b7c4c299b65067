"""What a client is told, from rows."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from magsd.core import statuses
from magsd.core.settings import CoreSettings
from magsd.model.errors import JobCode
from magsd.model.lifecycle import Goal, RunState, Status
from magsd.model.names import AccountId, RequestId, RunId, Subdomain, VmId
from magsd.model.records import Job, Run

NOW = datetime(2026, 1, 31, tzinfo=UTC)
SETTINGS = CoreSettings(Path("/data"), "gvisor", apps_domain="apps.example", apps_port=None)
JOB = Job(
    RequestId("r"),
    AccountId("a"),
    "n",
    None,
    False,
    False,
    Subdomain("abc"),
    Goal.RUNNING,
    1,
    4,
    NOW,
)


def told(state: RunState, **fields):
    run = Run(RunId("run"), JOB.request_id, 1, state, "gvisor", "application-kernel", NOW, **fields)
    return statuses.of_job(JOB, run, SETTINGS)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize("state", [RunState.PENDING, RunState.LAUNCHING])
def test_before_a_vm_is_attached_there_is_no_vm_id(state):
    status = told(state, vm_id=VmId("0123abcd"), claimed_at=after(1))
    assert (status.status, status.vm_id, status.exit_code) == (Status.PENDING, "", 0)
    assert (status.queue_duration_ms, status.acquire_duration_ms) == (1000, 0)


def test_running_and_vm_id_come_together():
    status = told(
        RunState.RUNNING, vm_id=VmId("0123abcd"), claimed_at=after(1), started_at=after(1.5)
    )
    assert (status.status, status.vm_id, status.exit_code) == (Status.RUNNING, "0123abcd", 0)
    assert (status.acquire_duration_ms, status.script_duration_ms) == (500, 0)
    assert status.url == "http://abc.apps.example"
    assert not status.is_final


def test_a_failure_has_a_code_and_a_success_has_none():
    times = {"claimed_at": after(1), "started_at": after(2), "ended_at": after(4)}
    failed = told(RunState.ENDED, exit_code=3, code=JobCode.SCRIPT_FAILED, error="e", **times)
    assert (failed.status, failed.exit_code, failed.error) == (Status.ERROR, 3, "e")
    done = told(RunState.ENDED, exit_code=0, **times)
    assert (done.status, done.exit_code, done.script_duration_ms) == (Status.COMPLETED, 0, 2000)
    assert done.is_final


def test_a_launch_that_failed_has_no_exit_code():
    status = told(RunState.ENDED, code=JobCode.LAUNCH_FAILED, vm_id=VmId("0123abcd"))
    assert (status.status, status.exit_code, status.vm_id) == (Status.ERROR, None, "")


def test_a_clock_that_was_set_back_makes_no_negative_times():
    status = told(RunState.ENDED, claimed_at=after(-5), started_at=after(-9), ended_at=after(-20))
    assert (status.queue_duration_ms, status.script_duration_ms) == (0, 0)
