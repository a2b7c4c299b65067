"""What each account's unfinished jobs take, and whether it may have more.

Counted in memory, from the rows at the start on; what an account may have is
read from the database now and then, because operators change it there.
"""

from collections.abc import Mapping

from magsd.db import accounts
from magsd.db.database import Database
from magsd.model.amount import Amount
from magsd.model.names import AccountId
from magsd.model.quota import Quota


class Quotas:
    """The use and the quotas of all accounts of a node."""

    def __init__(self, default: Quota) -> None:
        self._default = default
        self._quotas: Mapping[AccountId, Quota] = {}
        self._used: dict[AccountId, Amount] = {}

    async def load(self, database: Database) -> None:
        """Read what operators have decided. Raises `CapacityError`."""
        self._quotas = await database.read(accounts.quotas)

    def take(self, account_id: AccountId, need: Amount) -> None:
        """Count a job that is about to be taken on. Raises `QuotaError` that names the limit."""
        self.of(account_id).check(self.used(account_id), need)
        self.occupy(account_id, need)

    def of(self, account_id: AccountId) -> Quota:
        """Return what an account may have."""
        return self._quotas.get(account_id, Quota()).over(self._default)

    def occupy(self, account_id: AccountId, need: Amount) -> None:
        """Count a job that is there already."""
        self._used[account_id] = self.used(account_id).plus(need)

    def give_back(self, account_id: AccountId, need: Amount) -> None:
        """Count a job no more, which has ended or was not taken on."""
        left = self.used(account_id).minus(need)
        if left.vms > 0:
            self._used[account_id] = left
        else:
            self._used.pop(account_id, None)

    def used(self, account_id: AccountId) -> Amount:
        """Return what an account's unfinished jobs take together."""
        return self._used.get(account_id, Amount())
