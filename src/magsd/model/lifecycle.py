"""What the life of a run may do next: pure decisions, no I/O, no clock.

A run is in one `RunState`; its job has one `Goal`. A caller never asks for a
step. It asks for a goal, and the run's actor walks there one `Step` at a time:

    pending --launch--> launching --begin--> running --follow--> (script over) --> ended
       |                    |            |
       +------discard-------+            +--stop--> stopping --> ended

A run of a persistent job stays `running` when its script is over (`stay`), until somebody wants
its end or its VM is lost.
It may sleep meanwhile, and be woken, as often as it likes:

    running --sleep--> suspending --sleep--> sleeping --wake--> waking --> running
                                                |  ^               |
                                     (its end) -+  +---(it failed)-+

A VM that was lost and whose disk is whole is `suspending` too, and woken from there.
A run whose changes are kept is `saving` before it is `ended`: its result is known then, its VM is
of no use any more, and its disk is.

A job that finds a waiting VM when it is submitted is `launching` from the start.
Without that, `launching`, `stopping`, `suspending` and `waking` are seen at rest only after a
daemon has died in the middle: `recover` finds out what became of the VM. Asking twice for the same
goal is always allowed and changes nothing.

This file owns every rule about order; `core.vm_actor` owns doing it.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from magsd.model.errors import ConflictError


class RunState(StrEnum):
    """Where one life of a VM stands, as its row says."""

    PENDING = "pending"
    LAUNCHING = "launching"
    RUNNING = "running"
    SUSPENDING = "suspending"
    SLEEPING = "sleeping"
    WAKING = "waking"
    STOPPING = "stopping"
    SAVING = "saving"
    ENDED = "ended"


class Goal(StrEnum):
    """Where somebody wants a job to rest."""

    RUNNING = "running"
    ASLEEP = "asleep"
    STOPPED = "stopped"
    DELETED = "deleted"


class Status(StrEnum):
    """What a client is told about a job."""

    PENDING = "pending"
    RUNNING = "running"
    SLEEPING = "sleeping"
    COMPLETED = "completed"
    ERROR = "error"


class Step(StrEnum):
    """One unit of work an actor does for a run."""

    LAUNCH = "launch"
    """Claim a VM and begin the script in it."""
    DISCARD = "discard"
    """End a run that never had a VM."""
    BEGIN = "begin"
    """Begin the script in the VM that was claimed."""
    RECOVER = "recover"
    """Find the VM of a run that this process did not start."""
    FOLLOW = "follow"
    """Wait for the script's end, the VM's end or another goal, whichever is first."""
    STAY = "stay"
    """Wait for the VM's end or another goal: the script is over, and its VM stays."""
    STOP = "stop"
    """End the script and give the VM back."""
    SLEEP = "sleep"
    """End the VM and keep its disk, or go on with that."""
    REST = "rest"
    """Wait for another goal: the VM sleeps."""
    WAKE = "wake"
    """Begin another VM with the disk that was kept."""
    LEAVE = "leave"
    """End a run whose VM sleeps, without waking it."""
    SAVE = "save"
    """Keep what was changed, as a version of the workspace."""


OVER: Final = frozenset({Goal.STOPPED, Goal.DELETED})
"""Goals that a run reaches by ending."""

ASLEEP: Final = frozenset({RunState.SUSPENDING, RunState.SLEEPING, RunState.WAKING})
"""States in which a VM cannot be used before it is woken."""

STATES_AFTER: Final[Mapping[RunState, frozenset[RunState]]] = MappingProxyType(
    {
        RunState.PENDING: frozenset({RunState.LAUNCHING, RunState.ENDED}),
        RunState.LAUNCHING: frozenset(
            {RunState.RUNNING, RunState.PENDING, RunState.SAVING, RunState.ENDED}
        ),
        RunState.RUNNING: frozenset(
            {
                RunState.SUSPENDING,
                RunState.SLEEPING,
                RunState.STOPPING,
                RunState.SAVING,
                RunState.ENDED,
            }
        ),
        RunState.SUSPENDING: frozenset({RunState.SLEEPING, RunState.SAVING, RunState.ENDED}),
        RunState.SLEEPING: frozenset({RunState.WAKING, RunState.SAVING, RunState.ENDED}),
        RunState.WAKING: frozenset(
            {RunState.RUNNING, RunState.SLEEPING, RunState.SAVING, RunState.ENDED}
        ),
        RunState.STOPPING: frozenset({RunState.SAVING, RunState.ENDED}),
        RunState.SAVING: frozenset({RunState.ENDED}),
        RunState.ENDED: frozenset(),
    }
)
"""Every change of state that a row may make. `launching` falls back to `pending` only when
its VM was lost before the script began; the epoch counts that."""

LAUNCHES_MAX: Final = 10
"""How many VMs a run may lose before its script begins. Daemons that are killed during a
launch lose them too, so it is not few; it ends a run that kills daemons."""


def next_step(
    state: RunState,
    goal: Goal,
    *,
    is_attached: bool,
    is_claimed: bool = False,
    is_script_over: bool = False,
) -> Step | None:
    """Return what to do for a run in `state` towards `goal`, or None when it has ended.

    `is_attached` says whether the asker holds a connection to the run's VM:
    an actor of a restarted daemon does not. `is_claimed`: it holds a VM from
    the pool in which nothing was begun yet. `is_script_over`: the end of the
    script is recorded, and its VM is to stay.
    """
    if state is RunState.ENDED:
        return None
    if state is RunState.SAVING:
        return Step.SAVE
    if state is RunState.PENDING:
        return Step.DISCARD if goal in OVER else Step.LAUNCH
    if state is RunState.SUSPENDING:
        return Step.SLEEP
    if state is RunState.SLEEPING:
        return _asleep(goal)
    if not is_attached:
        return Step.BEGIN if is_claimed and goal not in OVER else Step.RECOVER
    if state is RunState.STOPPING or goal in OVER:
        return Step.STOP
    if goal is Goal.ASLEEP and state is RunState.RUNNING:
        return Step.SLEEP
    return Step.STAY if is_script_over else Step.FOLLOW


def _asleep(goal: Goal) -> Step:
    if goal in OVER:
        return Step.LEAVE
    return Step.WAKE if goal is Goal.RUNNING else Step.REST


def admit(goal: Goal, want: Goal, *, is_over: bool) -> Goal:
    """Return the goal a job has after someone asks for `want`.

    `is_over` says that its last run has ended. Raises `ConflictError`,
    changing nothing, when `want` cannot be reached.
    """
    if goal is Goal.DELETED and want is not Goal.DELETED:
        raise ConflictError("the job is being deleted")
    if want in OVER:
        return want if want is Goal.DELETED or goal is not Goal.STOPPED else goal
    if is_over:
        raise ConflictError("the job is over: submit it again")
    if goal is Goal.STOPPED:
        raise ConflictError("the job is being stopped")
    return want


def may_launch_again(epoch: int) -> bool:
    """Say whether a run whose VM `epoch` was lost before its script began gets another."""
    return epoch < LAUNCHES_MAX


def status_of(state: RunState, *, has_failed: bool) -> Status:
    """Return what clients are told. `has_failed`: the run's end has a `code`."""
    match state:
        case RunState.PENDING | RunState.LAUNCHING:
            return Status.PENDING
        case RunState.RUNNING | RunState.SUSPENDING | RunState.STOPPING | RunState.SAVING:
            return Status.RUNNING
        case RunState.SLEEPING | RunState.WAKING:
            return Status.SLEEPING
        case RunState.ENDED:
            return Status.ERROR if has_failed else Status.COMPLETED
