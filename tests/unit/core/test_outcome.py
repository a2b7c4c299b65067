"""What an end means."""

import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.core import outcome
from magsd.engine.base import EndReason, VmEnd
from magsd.model.errors import JobCode, LaunchError


@given(st.integers(0, 255))
def test_an_exit_code_is_the_scripts(code):
    result = outcome.of_script(code << 8)
    assert result.exit_code == code
    assert (result.code is None) == (result.error is None) == (code == 0)


@given(st.integers(1, 64), st.booleans())
def test_a_signal_is_128_and_its_number(number, has_core):
    result = outcome.of_script(number | (0x80 if has_core else 0))
    assert (result.exit_code, result.code) == (128 + number, JobCode.SCRIPT_FAILED)


def test_a_signal_is_named():
    assert "SIGSEGV" in outcome.of_script(signal.SIGSEGV).error


@given(st.integers(0, 0xFFFF))
def test_whatever_a_guest_reports_has_a_meaning(status):
    result = outcome.of_script(status)
    assert 0 <= result.exit_code <= 255
    assert (result.exit_code == 0) == (result.code is None)
    if os.WIFEXITED(status):
        assert result.exit_code == os.WEXITSTATUS(status)


@pytest.mark.parametrize("reason", list(EndReason))
def test_every_end_of_a_vm_has_a_code_and_a_sentence(reason):
    result = outcome.of_lost_vm(VmEnd(reason))
    assert result.exit_code == 137
    assert result.code is reason.job_code
    assert result.error


@pytest.mark.parametrize("exit_code", [None, 0, 3, 143])
def test_a_job_that_goes_on_until_it_is_stopped_completes_by_that(exit_code):
    result = outcome.of_stopped_persistent(exit_code)
    assert (result.exit_code, result.code, result.error) == (exit_code, None, None)
    assert result.line == outcome.STOPPED.line == "the job was stopped"


def test_ends_that_nobody_chose():
    timeout = outcome.of_timeout(7)
    assert (timeout.exit_code, timeout.code) == (124, JobCode.TIMEOUT)
    assert "7 s" in timeout.error
    failed = outcome.of_failed_launch(LaunchError("no", "detail", JobCode.IMAGE_DAMAGED))
    assert failed == outcome.Outcome(None, JobCode.IMAGE_DAMAGED, "no", "no")
    assert outcome.of_broken(has_begun=True).exit_code == 137
    assert outcome.of_broken(has_begun=False).exit_code is None
