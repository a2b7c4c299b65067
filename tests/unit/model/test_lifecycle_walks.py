"""Whole lives of a run: goals, steps, crashes of the daemon and losses of VMs in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from magsd.model.errors import ConflictError
from magsd.model.lifecycle import (
    LAUNCHES_MAX,
    OVER,
    STATES_AFTER,
    Goal,
    RunState,
    Status,
    Step,
    admit,
    may_launch_again,
    next_step,
    status_of,
)

RANK = {Goal.RUNNING: 0, Goal.ASLEEP: 0, Goal.STOPPED: 1, Goal.DELETED: 2}
FINAL = (Status.COMPLETED, Status.ERROR)
STEPS_MAX = 3 * LAUNCHES_MAX


class Life(RuleBasedStateMachine):
    """A run's row, what its actor holds, and a VM that may vanish at any moment."""

    def __init__(self):
        super().__init__()
        self.state = RunState.PENDING
        self.goal = Goal.RUNNING
        self.epoch = 1
        self.is_attached = False
        self.is_claimed = False
        self.is_alive = False
        self.has_begun = False
        self.is_kept = False
        self.is_persistent = False
        self.is_script_over = False

    def move(self, state):
        assert state in STATES_AFTER[self.state], f"{self.state} -> {state}"
        self.state = state

    def end(self):
        is_saved = self.is_kept and self.has_begun
        self.move(RunState.SAVING if is_saved else RunState.ENDED)
        self.is_attached = self.is_claimed = self.is_alive = False

    def save(self, is_cut, _is_well):
        if not is_cut:
            self.move(RunState.ENDED)

    def step(self):
        return next_step(
            self.state,
            self.goal,
            is_attached=self.is_attached,
            is_claimed=self.is_claimed,
            is_script_over=self.is_script_over,
        )

    @initialize(
        is_claimed=st.booleans(),
        epoch=st.integers(1, LAUNCHES_MAX),
        is_kept=st.booleans(),
        is_persistent=st.booleans(),
    )
    def submit(self, is_claimed, epoch, is_kept, is_persistent):
        """A job that found a waiting VM is launching from the start."""
        self.epoch, self.is_kept, self.is_persistent = epoch, is_kept, is_persistent
        if is_claimed:
            self.state = RunState.LAUNCHING
            self.is_claimed = self.is_alive = True

    @rule(want=st.sampled_from(Goal))
    def ask(self, want):
        before = self.goal
        try:
            self.goal = admit(before, want, is_over=self.state is RunState.ENDED)
        except ConflictError:
            assert want not in OVER or before is Goal.DELETED
            return
        assert RANK[self.goal] >= RANK[before]

    @rule()
    def the_daemon_is_killed(self):
        """What an actor held is gone; so is a VM from the pool in which nothing was begun."""
        if self.is_claimed and not self.has_begun:
            self.is_alive = False
        self.is_attached = self.is_claimed = False

    @precondition(lambda self: self.is_alive)
    @rule()
    def the_vm_dies(self):
        self.is_alive = False

    @precondition(lambda self: self.step() is not None)
    @rule(is_cut=st.booleans(), is_well=st.booleans())
    def walk(self, is_cut, is_well):
        """Do the next step; `is_cut`: the daemon is killed in its middle."""
        step = self.step()
        {
            Step.LAUNCH: self.launch,
            Step.DISCARD: self.discard,
            Step.BEGIN: self.begin,
            Step.RECOVER: self.recover,
            Step.FOLLOW: self.follow,
            Step.STAY: self.stay,
            Step.STOP: self.stop,
            Step.SAVE: self.save,
            Step.SLEEP: self.sleep,
            Step.REST: self.rest,
            Step.WAKE: self.wake,
            Step.LEAVE: self.leave,
        }[step](is_cut, is_well)

    def launch(self, is_cut, is_well):
        assert not self.is_alive, "a run has one VM at a time"
        assert self.goal not in OVER
        self.move(RunState.LAUNCHING)
        self.is_alive, self.has_begun = is_well, False
        if not is_cut:
            self.begun_or_refused()

    @precondition(lambda self: self.state is RunState.LAUNCHING and self.is_alive)
    @rule()
    def the_script_begins_and_nobody_writes_it_down(self):
        self.has_begun = True
        self.the_daemon_is_killed()

    def begin(self, is_cut, is_well):
        assert self.state is RunState.LAUNCHING
        assert not self.has_begun, "a script is begun once"
        assert self.goal not in OVER
        self.is_alive = self.is_alive and is_well
        if is_cut:
            self.the_daemon_is_killed()
        else:
            self.begun_or_refused()

    def begun_or_refused(self):
        self.is_claimed = False
        if self.is_alive:
            self.has_begun = True
            self.move(RunState.RUNNING)
            self.is_attached = True
        else:
            self.end()

    def discard(self, _is_cut, _is_well):
        assert not self.is_alive, "nothing is left behind"
        self.end()

    def sleep(self, is_cut, _is_well):
        assert self.is_attached or self.state is RunState.SUSPENDING
        if self.state is RunState.RUNNING:
            if not self.is_persistent:
                self.goal = admit(self.goal, Goal.RUNNING, is_over=False)
                return
            self.move(RunState.SUSPENDING)
        self.is_script_over = True
        if is_cut:
            self.the_daemon_is_killed()
            return
        self.is_attached = self.is_alive = False
        self.move(RunState.SLEEPING)

    def rest(self, _is_cut, _is_well):
        assert self.goal is Goal.ASLEEP
        assert not self.is_alive, "what sleeps is a disk"

    def wake(self, is_cut, is_well):
        assert self.goal is Goal.RUNNING
        assert not self.is_alive, "a run has one VM at a time"
        self.move(RunState.WAKING)
        self.is_alive = True
        if is_cut:
            self.the_daemon_is_killed()
        elif is_well:
            self.is_attached = True
            self.move(RunState.RUNNING)
        else:
            self.is_alive = False
            self.move(RunState.SLEEPING)
            self.goal = admit(self.goal, Goal.ASLEEP, is_over=False)

    def leave(self, is_cut, _is_well):
        assert self.goal in OVER
        assert not self.is_alive, "nothing is left behind"
        if not is_cut:
            self.end()

    def recover(self, is_cut, _is_well):
        assert not self.is_attached
        if is_cut:
            return
        if self.state is RunState.WAKING:
            self.is_alive = False
            self.move(RunState.SLEEPING)
            return
        if self.state is RunState.LAUNCHING and not self.has_begun:
            self.lost_before_the_script()
        elif not self.is_alive:
            self.end()
        else:
            if self.state is RunState.LAUNCHING:
                self.move(RunState.RUNNING)
            self.is_attached = True

    def lost_before_the_script(self):
        self.is_alive = self.is_claimed = False
        if self.goal not in OVER and may_launch_again(self.epoch):
            self.move(RunState.PENDING)
            self.epoch += 1
        else:
            self.end()

    def follow(self, _is_cut, is_over):
        assert self.is_attached
        assert self.goal not in OVER
        assert self.state in (RunState.LAUNCHING, RunState.RUNNING)
        assert not self.is_script_over, "a script is followed once"
        if not self.is_alive:
            self.end()
        elif is_over and self.is_persistent:
            self.is_script_over = True
        elif is_over:
            self.end()

    def stay(self, _is_cut, _is_well):
        assert self.is_attached
        assert self.is_persistent
        assert self.goal not in OVER
        if not self.is_alive:
            self.end()

    def stop(self, is_cut, _is_well):
        assert self.is_attached
        assert self.goal in OVER or self.state is RunState.STOPPING
        if self.state is not RunState.STOPPING:
            self.move(RunState.STOPPING)
        if is_cut:
            self.the_daemon_is_killed()
        else:
            self.end()

    @invariant()
    def a_step_is_there_until_the_end(self):
        assert (self.step() is None) == (self.state is RunState.ENDED)

    @invariant()
    def clients_see_an_end_at_the_end_only(self):
        for has_failed in (False, True):
            is_final = status_of(self.state, has_failed=has_failed) in FINAL
            assert is_final == (self.state is RunState.ENDED)

    @invariant()
    def launches_are_counted(self):
        assert self.epoch <= LAUNCHES_MAX

    @invariant()
    def what_has_ended_keeps_nothing(self):
        if self.state is RunState.ENDED:
            assert [self.is_alive, self.is_attached, self.is_claimed] == [False] * 3

    def teardown(self):
        """Whatever came before: whoever asks for the end gets it."""
        if self.goal is not Goal.DELETED:
            self.goal = admit(self.goal, Goal.STOPPED, is_over=self.state is RunState.ENDED)
        for _ in range(STEPS_MAX):
            if self.step() is None:
                break
            self.walk(is_cut=False, is_well=True)
        assert self.state is RunState.ENDED


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
