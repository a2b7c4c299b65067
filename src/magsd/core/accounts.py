"""The administration of accounts, by whoever may read the database's file."""

import dataclasses
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from magsd.db import accounts
from magsd.db.database import Database
from magsd.model.errors import NotFoundError
from magsd.model.quota import Quota
from magsd.model.records import Account


class Accounts:
    """All accounts of a database, also while a service works with it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def listed(self) -> Sequence[tuple[Account, Quota]]:
        """Return all accounts with what each may have, as far as it was decided for it."""
        return await self._database.read(accounts.listed)

    async def change_quota(self, name: str, changes: Mapping[str, int | None]) -> Quota:
        """Change some limits of an account and return all; None: the operator's default again.

        A service that runs takes note within seconds. Raises `NotFoundError`.
        """

        def store(tx: Connection) -> Quota:
            found = {account.name: (account, quota) for account, quota in accounts.listed(tx)}
            if name not in found:
                known = ", ".join(found) or "none yet"
                raise NotFoundError(f"there is no account {name!r} (known: {known})")
            account, quota = found[name]
            changed = dataclasses.replace(quota, **changes)
            accounts.set_quota(tx, account.account_id, changed)
            return changed

        return await self._database.write(store)
