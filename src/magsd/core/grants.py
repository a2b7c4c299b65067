"""Grants: whoever owns a job opens a way into its VM, to a port or for SSH.

A row is written, then `Entries` is told. What ends (a job, a token, a key's
time) opens nothing from that moment on, and its rows go a little later.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import structlog
from sqlalchemy import Connection

from magsd.aio import finish
from magsd.core.access import Access
from magsd.core.entries import Entries
from magsd.core.jobs import Jobs
from magsd.core.keys import new_key
from magsd.core.leases import Leases
from magsd.core.node import Node
from magsd.db import audit, grants, jobs
from magsd.model.errors import CapacityError, ConflictError, InvalidError, UnauthorizedError
from magsd.model.grants import KEY_TIME, KEYS_MAX, SSH_PORT, Grant, GrantKind, SshAccess
from magsd.model.names import RequestId, TokenId, new_grant_id
from magsd.model.records import JobStatus, Principal

_TIDY_S = 60.0

_log = structlog.get_logger()


class Grants:
    """The grants of a node's jobs."""

    def __init__(
        self, node: Node, access: Access, jobs: Jobs, leases: Leases, entries: Entries
    ) -> None:
        self._node = node
        self._access = access
        self._jobs = jobs
        self._leases = leases
        self._entries = entries
        self._has_dead_rows = True
        node.events.on_end = self._job_ended
        access.on_removed = self._token_removed

    async def load(self) -> None:
        """Read what is granted, once the jobs that live are known."""
        await self.tidy()
        for grant in await self._node.database.read(grants.all_grants):
            self._entries.put(grant)

    async def open_url(self, principal: Principal, ref: str, port: int) -> JobStatus:
        """Let the URL of a persistent job lead to a port in its VM, and to no other any more.

        One that sleeps is woken. Raises `NotFoundError`, `InvalidError` for a
        job that is not persistent, `ConflictError` for one that has no VM.
        """
        async with self._awake(principal, ref) as status:
            grant = self._made(principal, status, GrantKind.HTTP, port)
            await self._put(principal, grant, "url_granted", keep=0)
        return status

    async def open_ssh(self, principal: Principal, ref: str) -> SshAccess:
        """Make an SSH key that opens a persistent job; see `open_url`.

        It is good for a day after its last use. Of more than 32 the oldest goes.
        """
        key = new_key()
        now = self._node.clock.now()
        async with self._awake(principal, ref) as status:
            grant = self._made(
                principal,
                status,
                GrantKind.SSH,
                SSH_PORT,
                fingerprint=key.fingerprint,
                expires_at=now + KEY_TIME,
            )
            await self._put(principal, grant, "ssh_granted", keep=KEYS_MAX - 1)
        settings = self._node.settings
        return SshAccess(settings.ssh_public_host, settings.ssh_public_port, key.private_key)

    async def tidy(self) -> None:
        """Write down until when keys are good, and remove rows that open nothing any more.

        Raises `CapacityError`; it is done the next time then.
        """
        self._has_dead_rows |= self._entries.drop_past()
        used, has_dead_rows = self._entries.take_used(), self._has_dead_rows
        if not used and not has_dead_rows:
            return
        now = self._node.clock.now()

        def write(tx: Connection) -> None:
            if used:
                grants.touch(tx, used)
            if has_dead_rows:
                grants.remove_dead(tx, now)

        self._has_dead_rows = False
        try:
            await self._node.database.write(write)
        except CapacityError:
            self._entries.give_back_used(used)
            self._has_dead_rows = has_dead_rows
            raise

    async def run(self) -> None:
        """Tidy now and then, until cancelled."""
        while True:
            await self._node.clock.sleep(_TIDY_S)
            try:
                await self.tidy()
            except CapacityError as error:
                _log.warning("grants_must_wait", why=error.message, detail=error.detail)

    # --- parts -----------------------------------------------------------------

    @asynccontextmanager
    async def _awake(self, principal: Principal, ref: str) -> AsyncIterator[JobStatus]:
        """Use the VM of a job that something may be granted of."""
        if not self._node.settings.has_gateways:
            raise InvalidError("this service publishes nothing: its operator has set EDGES to 0")
        status = await self._jobs.find(principal, ref)
        if not status.persistent:
            raise InvalidError(
                "access needs a persistent job: submit it with `persistent` set to true"
            )
        async with self._leases.hold(status):
            yield status

    def _made(
        self,
        principal: Principal,
        status: JobStatus,
        kind: GrantKind,
        port: int,
        *,
        fingerprint: str | None = None,
        expires_at: datetime | None = None,
    ) -> Grant:
        return Grant(
            grant_id=new_grant_id(),
            account_id=status.account_id,
            request_id=status.request_id,
            kind=kind,
            port=port,
            created_at=self._node.clock.now(),
            token_id=principal.token_id,
            ends_at=principal.expires_at,
            fingerprint=fingerprint,
            expires_at=expires_at,
        )

    async def _put(self, principal: Principal, grant: Grant, action: str, *, keep: int) -> None:
        """Store a grant beside so many of its kind, and let it open its job."""

        def store(tx: Connection) -> list[Grant]:
            if jobs.get(tx, grant.account_id, grant.request_id) is None:
                raise ConflictError("the job is gone")
            old = grants.of_job(tx, grant.request_id, grant.kind)[keep:]
            grants.remove(tx, [each.grant_id for each in old])
            grants.add(tx, grant)
            audit.add(tx, principal, action, grant.request_id, grant.created_at)
            return list(old)

        async def put() -> None:
            self._entries.drop(await self._node.database.write(store))
            if not self._access.is_valid(principal):
                self._has_dead_rows = True
                raise UnauthorizedError("the token was deleted meanwhile: use another one")
            self._entries.put(grant)

        await finish(put())

    def _job_ended(self, request_id: RequestId) -> None:
        self._has_dead_rows |= self._entries.drop_job(request_id)

    def _token_removed(self, token_id: TokenId) -> None:
        self._has_dead_rows |= self._entries.drop_token(token_id)
