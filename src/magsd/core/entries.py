"""The picture of all that is granted, in memory: which name and which key open which job.

It costs a stranger who asks for a name no SQL, and nothing of the name stays.
Whoever writes rows tells it afterwards; that a job has ended it sees by itself,
from what was published last.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from magsd.aio import Clock
from magsd.core.events import Events
from magsd.model.grants import KEY_TIME, Alias, Grant, GrantKind, label_of
from magsd.model.names import AccountId, GrantId, RequestId, Subdomain, TokenId
from magsd.model.records import JobStatus


class Entries:
    """Grants and aliases that open something now."""

    def __init__(self, events: Events, clock: Clock, domains: tuple[str, ...]) -> None:
        """`domains`: a name of one label before one of them may be a job's."""
        self._events = events
        self._clock = clock
        self._domains = domains
        self._of_job: dict[RequestId, dict[GrantId, Grant]] = {}
        self._urls: dict[Subdomain, Grant] = {}
        self._labels: dict[GrantId, Subdomain] = {}
        self._keys: dict[str, Grant] = {}
        self._used: dict[GrantId, datetime] = {}
        self._aliases: dict[str, Alias] = {}
        self._aliased: Counter[tuple[AccountId, str]] = Counter()

    # --- what is asked ---------------------------------------------------------

    def find_url(self, host: str) -> tuple[RequestId, int] | None:
        """Return the job and the port that a host name leads to."""
        label = label_of(host, self._domains)
        if label is None:
            return None
        grant = self._urls.get(Subdomain(label))
        if grant is not None:
            return (grant.request_id, grant.port) if self._opens(grant) else None
        alias = self._aliases.get(label)
        holder = alias and self._events.holder_of(alias.account_id, alias.workspace)
        return (holder.request_id, alias.port) if alias and holder else None

    def use_key(self, fingerprint: str) -> RequestId | None:
        """Return the job that a key opens, and let the key's time begin anew."""
        grant = self._keys.get(fingerprint)
        if grant is None or not self._opens(grant):
            return None
        until = self._clock.now() + KEY_TIME
        self._note(dataclasses.replace(grant, expires_at=until))
        self._used[grant.grant_id] = until
        return grant.request_id

    def may_enter(self, status: JobStatus) -> bool:
        """Say whether anything at all opens a job."""
        workspace = status.workspace_id
        if workspace is not None and self._aliased[status.account_id, workspace] > 0:
            return True
        return any(self._opens(grant) for grant in self._of_job.get(status.request_id, {}).values())

    def port_of(self, request_id: RequestId) -> int | None:
        """Return the port that the URL of a job leads to."""
        its = self._of_job.get(request_id, {}).values()
        return next((each.port for each in its if each.kind is GrantKind.HTTP), None)

    def aliases_of(self, account_id: AccountId) -> list[Alias]:
        """Return the aliases of an account, oldest first."""
        return [alias for alias in self._aliases.values() if alias.account_id == account_id]

    def _opens(self, grant: Grant) -> bool:
        status = self._events.get(grant.request_id)
        is_alive = status is not None and not status.is_final
        return is_alive and grant.is_current(self._clock.now())

    # --- what is told ----------------------------------------------------------

    def put(self, grant: Grant) -> None:
        """Take note of a grant. One that opens nothing, as of a job that has ended, is forgotten."""
        if self._opens(grant):
            self._note(grant)

    def drop(self, grants: Iterable[Grant]) -> None:
        """Forget grants; unknown ones are fine."""
        for grant in list(grants):
            self._forget(grant)

    def drop_job(self, request_id: RequestId) -> bool:
        """Forget what opened a job; say whether there was anything."""
        return self._drop_all(self._of_job.get(request_id, {}).values())

    def drop_token(self, token_id: TokenId) -> bool:
        """Forget what was granted by a token; say whether there was anything."""
        return self._drop_all(each for each in self._all() if each.token_id == token_id)

    def drop_past(self) -> bool:
        """Forget what is past its time; say whether there was anything."""
        return self._drop_all(each for each in self._all() if not self._opens(each))

    def take_used(self) -> Mapping[GrantId, datetime]:
        """Return until when keys are good that were used since this was asked last."""
        used, self._used = self._used, {}
        return used

    def give_back_used(self, used: Mapping[GrantId, datetime]) -> None:
        """Take back what could not be written down."""
        self._used = {**used, **self._used}

    def put_alias(self, alias: Alias) -> None:
        """Take note of an alias."""
        self._aliases[alias.subdomain] = alias
        self._aliased[alias.account_id, alias.workspace] += 1

    def drop_alias(self, subdomain: str) -> None:
        """Forget an alias."""
        alias = self._aliases.pop(subdomain)
        key = alias.account_id, alias.workspace
        self._aliased[key] -= 1
        if not self._aliased[key]:
            del self._aliased[key]

    # --- inside ----------------------------------------------------------------

    def _all(self) -> Iterable[Grant]:
        return (grant for its in self._of_job.values() for grant in its.values())

    def _note(self, grant: Grant) -> None:
        self._of_job.setdefault(grant.request_id, {})[grant.grant_id] = grant
        if grant.fingerprint is not None:
            self._keys[grant.fingerprint] = grant
        elif (status := self._events.get(grant.request_id)) is not None:
            self._urls[status.subdomain] = grant
            self._labels[grant.grant_id] = status.subdomain

    def _drop_all(self, grants: Iterable[Grant]) -> bool:
        going = list(grants)
        self.drop(going)
        return bool(going)

    def _forget(self, grant: Grant) -> None:
        its = self._of_job.get(grant.request_id, {})
        if its.pop(grant.grant_id, None) is None:
            return
        if not its:
            del self._of_job[grant.request_id]
        self._used.pop(grant.grant_id, None)
        if grant.fingerprint is not None:
            self._keys.pop(grant.fingerprint, None)
        label = self._labels.pop(grant.grant_id, None)
        # The next one may have taken its place.
        if label is not None and self._urls[label].grant_id == grant.grant_id:
            del self._urls[label]
