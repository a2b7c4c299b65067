"""Aliases: names in URLs that follow a workspace's live job, whichever job that is."""

from sqlalchemy import Connection

from magsd.aio import finish
from magsd.core.entries import Entries
from magsd.core.node import Node
from magsd.db import audit, grants
from magsd.model.errors import ConflictError, InvalidError, NotFoundError, QuotaError
from magsd.model.grants import ALIASES_MAX, DEFAULT_PORT, Alias, check_alias
from magsd.model.names import check_workspace_name
from magsd.model.records import Principal


class Aliases:
    """The aliases of all accounts."""

    def __init__(self, node: Node, entries: Entries) -> None:
        self._node = node
        self._entries = entries

    async def load(self) -> None:
        """Read those that there are."""
        for alias in await self._node.database.read(grants.all_aliases):
            self._entries.put_alias(alias)

    async def create(
        self, principal: Principal, subdomain: str, workspace: str, port: int | None
    ) -> Alias:
        """Make an alias of the caller's workspace, which need not exist yet.

        Without `port` it is the one that the workspace's job shows, else 8080.
        Raises `InvalidError`, `ConflictError` when anybody has the name,
        `QuotaError` for one too many.
        """
        if not self._node.settings.has_gateways:
            raise InvalidError("this service publishes nothing: its operator has set EDGES to 0")
        label = check_alias(subdomain)
        check_workspace_name("workspace_id", workspace)
        account_id = principal.account_id
        if port is None:
            holder = self._node.events.holder_of(account_id, workspace)
            port = (holder and self._entries.port_of(holder.request_id)) or DEFAULT_PORT
        alias = Alias(label, account_id, workspace, port, self._node.clock.now())

        def store(tx: Connection) -> bool:
            is_stored = grants.add_alias(tx, alias, ALIASES_MAX)
            if is_stored:
                audit.add(tx, principal, "alias_created", label, alias.created_at)
            return is_stored

        async def create() -> None:
            if not await self._node.database.write(store):
                raise QuotaError(f"the account has {ALIASES_MAX} aliases already: delete some")
            self._entries.put_alias(alias)

        try:
            await finish(create())
        except LookupError:
            raise ConflictError(
                f"the subdomain {label!r} is already taken: choose another"
            ) from None
        return alias

    def listed(self, principal: Principal) -> list[Alias]:
        """Return the aliases of the caller's account, oldest first."""
        return self._entries.aliases_of(principal.account_id)

    async def delete(self, principal: Principal, subdomain: str) -> None:
        """Delete an alias of the caller's account. Raises `NotFoundError`."""
        label, account_id, now = subdomain.lower(), principal.account_id, self._node.clock.now()

        def remove(tx: Connection) -> bool:
            is_removed = grants.remove_alias(tx, account_id, label)
            if is_removed:
                audit.add(tx, principal, "alias_deleted", label, now)
            return is_removed

        async def delete() -> None:
            if not await self._node.database.write(remove):
                raise NotFoundError(f"there is no alias {subdomain[:63]!r}: see the list of them")
            self._entries.drop_alias(label)

        await finish(delete())
