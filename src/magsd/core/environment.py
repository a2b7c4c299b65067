"""The environment of what is run in a job's VM beside its script."""

from collections.abc import Mapping

from magsd.core import launch
from magsd.db import jobs
from magsd.db.database import Database
from magsd.model.errors import NotFoundError
from magsd.model.names import RequestId


async def of_job(database: Database, request_id: RequestId) -> Mapping[str, str]:
    """Return the variables of every command in a job's VM, complete.

    Raises `NotFoundError` when the job is gone.
    """
    try:
        asked = await database.read(lambda tx: jobs.environment(tx, request_id))
    except LookupError:
        raise NotFoundError("the job is gone") from None
    return launch.environment_of(asked)
