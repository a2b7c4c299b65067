"""What an account has used, from its rows."""

from sqlalchemy import Connection

from magsd.aio import Clock
from magsd.db import usage
from magsd.db.database import Database
from magsd.model.records import Principal
from magsd.model.usage import Usage, UsageDay, begin_of, days_of


class Usages:
    """The use that accounts have made of this service."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def of(self, principal: Principal, window_days: int) -> Usage:
        """Return what the caller's account used on so many days, today among them.

        Jobs that were deleted for their age count no more. Raises `CapacityError`.
        """
        account_id, now = principal.account_id, self._clock.now()
        since, days = begin_of(window_days, now), days_of(window_days, now)

        def work(tx: Connection) -> Usage:
            jobs = usage.jobs_by_day(tx, account_id, since)
            seconds = usage.vm_seconds(tx, account_id, since, now)
            completed, failed = usage.ended(tx, account_id, since)
            return Usage(
                window_days=window_days,
                total_jobs=sum(jobs.values()),
                completed_jobs=completed,
                failed_jobs=failed,
                running_jobs=usage.running(tx, account_id),
                storage_bytes=usage.storage_bytes(tx, account_id),
                by_day=[UsageDay(day, jobs.get(day, 0), seconds.get(day, 0.0)) for day in days],
            )

        return await self._database.read(work)
