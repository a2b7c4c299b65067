"""What a run's end means: pure decisions from exit records to exit code, code and sentence."""

import os
import signal
from dataclasses import dataclass
from typing import Final

from magsd.engine.base import EndReason, VmEnd
from magsd.model.errors import JobCode, LaunchError

EXIT_TIMEOUT: Final = 124
EXIT_STOPPED: Final = 143
EXIT_VM_DIED: Final = 137
EXIT_SIGNAL_BASE: Final = 128


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, as its row and its owner will know it."""

    exit_code: int | None
    code: JobCode | None
    """None: completed."""
    error: str | None
    line: str | None = None
    """What the job's log says at last."""


COMPLETED: Final = Outcome(0, None, None)
_STOPPED: Final = "the job was stopped"
STOPPED: Final = Outcome(EXIT_STOPPED, JobCode.STOPPED, _STOPPED, _STOPPED)

_VM_ENDS: Final = {
    EndReason.KILLED: "its VM was ended by hand",
    EndReason.OUT_OF_MEMORY: "the VM ran out of memory: ask for more with memory_mb",
    EndReason.TOO_MANY_PROCESSES: "the VM ran into its limit of processes",
    EndReason.ENGINE_DIED: "the VM's engine ended unexpectedly",
    EndReason.AGENT_DIED: "the agent inside the VM ended unexpectedly",
    EndReason.SHIM_DIED: "the VM's shim ended unexpectedly",
    EndReason.FENCED: "the VM's node lost its lease",
    EndReason.HOST_DISK_FULL: "the host's disk is full",
    EndReason.HOST_RESTARTED: "the host was restarted",
}


def of_script(wait_status: int) -> Outcome:
    """Return what a script's own end means."""
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "a real-time signal"
        text = f"the script was ended by signal {number} ({name})"
        return Outcome(EXIT_SIGNAL_BASE + number, JobCode.SCRIPT_FAILED, text)
    if (exit_code := os.WEXITSTATUS(wait_status)) == 0:
        return COMPLETED
    text = f"the script ended with exit code {exit_code}"
    return Outcome(exit_code, JobCode.SCRIPT_FAILED, text)


def of_stopped_persistent(exit_code: int | None) -> Outcome:
    """Return what it means that a job was stopped which goes on until it is.

    `exit_code` is its script's; None: no script began.
    """
    return Outcome(exit_code, None, None, _STOPPED)


def of_timeout(timeout_s: int) -> Outcome:
    """Return what an end by the deadline means."""
    text = f"the script was ended after its timeout of {timeout_s} s"
    return Outcome(EXIT_TIMEOUT, JobCode.TIMEOUT, text, text)


def of_lost_vm(end: VmEnd) -> Outcome:
    """Return what it means that the VM ended before its script did."""
    text = _VM_ENDS[end.reason]
    return Outcome(EXIT_VM_DIED, end.reason.job_code, text, text)


def of_failed_launch(error: LaunchError) -> Outcome:
    """Return what it means that no VM could be had."""
    return Outcome(None, error.job_code, error.message, error.message)


def of_lost_state(exit_code: int | None) -> Outcome:
    """Return what it means that a job that slept has nothing left to go on from."""
    text = "the job's disk was lost while it slept, and there is no workspace to start from"
    return Outcome(exit_code, JobCode.STATE_LOST, text, text)


def of_sleep(*, is_cut: bool) -> str:
    """Return what a job's log says when it falls asleep. `is_cut`: its script ran still."""
    return "the job went to sleep, and its script was ended" if is_cut else "the job went to sleep"


def of_wake(*, is_cut: bool, why_cold: str = "") -> str:
    """Return what a job's log says when its VM was started again on its own disk.

    `is_cut`: its script was to go on from memory, and could not: `why_cold`.
    """
    line = "started from its own disk"
    if why_cold:
        line = f"{line}, not from memory ({why_cold})"
    return f"{line}; its script was ended" if is_cut else line


def of_going_on(lost: Outcome) -> str:
    """Return what a job's log says when it goes on although its VM was lost."""
    return f"{lost.error}; the job goes on from its own disk"


def of_startup(wait_status: int) -> str:
    """Return what a job's log says when its startup command has failed."""
    failed = of_script(wait_status)
    assert failed.error is not None
    return failed.error.replace("the script", "the startup command", 1)


def of_changes_not_kept(why: str) -> str:
    """Return what a job's log says when a sleeping VM's changes are no version yet."""
    return (
        "what the job changed could not be kept in its workspace yet, and lies on this machine: "
        f"{why}"
    )


def of_pending_version(version: int) -> str:
    """Return what a job's log says when the object store could not be waited for."""
    return (
        f"version {version} of the workspace lies on this machine alone so far: the object store "
        "cannot be used now. It is stored as soon as that can be, and the next job here begins "
        "from it"
    )


def of_version_aside(version: int) -> str:
    """Return what a job's log says when another became the workspace's newest version first."""
    return (
        f"version {version} of the workspace is stored, and another became the newest before it "
        "could: restore it to go on from it"
    )


def of_lost_changes(exit_code: int | None, why: str) -> Outcome:
    """Return what it means that what a run changed could not be kept."""
    text = f"what the job changed could not be kept in its workspace: {why}"
    return Outcome(exit_code, JobCode.STATE_LOST, text, text)


def of_broken(*, has_begun: bool) -> Outcome:
    """Return what it means that this service could not go on with a run."""
    text = "the service could not go on with this job: its operator finds the reason in the log"
    code = JobCode.SHIM_DIED if has_begun else JobCode.LAUNCH_FAILED
    return Outcome(EXIT_VM_DIED if has_begun else None, code, text, text)
