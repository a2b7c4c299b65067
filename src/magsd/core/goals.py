"""How a job gets another goal: its row first, by compare-and-set, then its actor is told."""

import dataclasses

from sqlalchemy import Connection

from magsd.db import jobs
from magsd.model.errors import ConflictError
from magsd.model.lifecycle import Goal, RunState, admit
from magsd.model.records import Job, Run


def with_goal(tx: Connection, job: Job, run: Run, want: Goal) -> Job:
    """Write down that somebody wants `want`, and return the job as it is then.

    Raises `ConflictError` when it cannot be reached, or somebody else was quicker.
    """
    is_over = run.state is RunState.ENDED
    goal = admit(job.goal, want, is_over=is_over)
    if is_over or goal is job.goal:
        return job
    if not jobs.set_goal(tx, job.request_id, goal, seen_version=job.goal_version):
        raise ConflictError("somebody else changed the job at this moment: try again")
    return dataclasses.replace(job, goal=goal, goal_version=job.goal_version + 1)
