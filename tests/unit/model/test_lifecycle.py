"""The rules about order: properties over every path that a run can take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

LIVE = [state for state in RunState if state is not RunState.ENDED]


@pytest.mark.parametrize("is_attached", [False, True])
@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize("state", LIVE)
def test_no_state_but_the_last_is_without_a_step(state, goal, is_attached):
    assert next_step(state, goal, is_attached=is_attached) is not None
    assert next_step(RunState.ENDED, goal, is_attached=is_attached) is None


@pytest.mark.parametrize("state", LIVE)
def test_every_state_leads_to_the_end(state):
    reached, todo = set(), [state]
    while todo:
        reached.add(now := todo.pop())
        todo += [after for after in STATES_AFTER[now] if after not in reached]
    assert RunState.ENDED in reached


@given(st.data())
def test_a_goal_to_be_over_is_reached_from_anywhere(data):
    """Whatever a step comes to, as long as VMs are not lost for ever."""
    state = data.draw(st.sampled_from(LIVE))
    goal = data.draw(st.sampled_from(sorted(OVER)))
    is_attached = data.draw(st.booleans())
    for _ in range(10):
        step = next_step(state, goal, is_attached=is_attached)
        if step is None:
            break
        assert step not in (Step.LAUNCH, Step.FOLLOW, Step.WAKE, Step.REST)
        if step is Step.SLEEP or (step is Step.RECOVER and state is RunState.WAKING):
            state, is_attached = RunState.SLEEPING, False
        elif step is Step.RECOVER:
            is_attached = data.draw(st.booleans())
            if not is_attached:
                state = RunState.ENDED
        else:
            state = RunState.ENDED
    assert state is RunState.ENDED


@given(st.sampled_from(LIVE), st.booleans())
def test_what_runs_is_followed_and_what_waits_is_launched(state, is_attached):
    step = next_step(state, Goal.RUNNING, is_attached=is_attached)
    if state is RunState.PENDING:
        assert step is Step.LAUNCH
    elif state is RunState.SUSPENDING:
        assert step is Step.SLEEP
    elif state is RunState.SLEEPING:
        assert step is Step.WAKE
    elif state is RunState.SAVING:
        assert step is Step.SAVE
    elif not is_attached:
        assert step is Step.RECOVER
    else:
        assert step is (Step.STOP if state is RunState.STOPPING else Step.FOLLOW)


@given(st.sampled_from(LIVE), st.sampled_from(Goal), st.booleans())
def test_a_script_that_is_over_is_not_followed_again(state, goal, is_attached):
    before = next_step(state, goal, is_attached=is_attached)
    after = next_step(state, goal, is_attached=is_attached, is_script_over=True)
    assert after is (Step.STAY if before is Step.FOLLOW else before)


@pytest.mark.parametrize("is_attached", [False, True])
@pytest.mark.parametrize("state", LIVE)
def test_only_what_runs_is_put_to_sleep(state, is_attached):
    step = next_step(state, Goal.ASLEEP, is_attached=is_attached)
    if state is RunState.SLEEPING:
        assert step is Step.REST
    elif (state, is_attached) == (RunState.RUNNING, True):
        assert step is Step.SLEEP
    else:
        assert step is next_step(state, Goal.RUNNING, is_attached=is_attached)


@pytest.mark.parametrize("goal", sorted(OVER))
def test_what_sleeps_ends_without_being_woken(goal):
    assert next_step(RunState.SLEEPING, goal, is_attached=False) is Step.LEAVE
    assert next_step(RunState.SUSPENDING, goal, is_attached=False) is Step.SLEEP
    assert next_step(RunState.WAKING, goal, is_attached=False) is Step.RECOVER


@given(st.sampled_from(Goal), st.lists(st.tuples(st.sampled_from(Goal), st.booleans())))
def test_goals_only_move_towards_the_end(goal, asked):
    rank = {Goal.RUNNING: 0, Goal.ASLEEP: 0, Goal.STOPPED: 1, Goal.DELETED: 2}
    for want, is_over in asked:
        try:
            after = admit(goal, want, is_over=is_over)
        except ConflictError:
            continue
        assert rank[after] >= rank[goal]
        assert after is want or want is Goal.STOPPED
        goal = after


@given(st.sampled_from(Goal), st.sampled_from(Goal), st.booleans())
def test_asking_twice_changes_nothing(goal, want, is_over):
    try:
        once = admit(goal, want, is_over=is_over)
    except ConflictError:
        return
    assert admit(once, want, is_over=is_over) is once


def test_a_job_that_is_over_cannot_be_woken_but_stopped_again():
    assert admit(Goal.STOPPED, Goal.STOPPED, is_over=True) is Goal.STOPPED
    with pytest.raises(ConflictError, match="over"):
        admit(Goal.RUNNING, Goal.ASLEEP, is_over=True)
    with pytest.raises(ConflictError, match="being stopped"):
        admit(Goal.STOPPED, Goal.RUNNING, is_over=False)
    with pytest.raises(ConflictError, match="being deleted"):
        admit(Goal.DELETED, Goal.STOPPED, is_over=False)


def test_vms_are_not_tried_for_ever():
    tried = [epoch for epoch in range(1, 100) if may_launch_again(epoch)]
    assert tried == list(range(1, LAUNCHES_MAX))


@given(st.sampled_from(RunState), st.booleans())
def test_only_what_has_ended_is_told_as_final(state, has_failed):
    is_final = status_of(state, has_failed=has_failed) in (Status.COMPLETED, Status.ERROR)
    assert is_final == (state is RunState.ENDED)
