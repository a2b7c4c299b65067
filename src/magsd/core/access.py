"""Who may ask: accounts and tokens, and a cache that keeps SQL off the hot path.

A secret is seen twice only: in the reply that makes a token, and in the
requests that carry it. What is stored is its SHA-256; it has 160 random bits,
so nothing slower is called for.
"""

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from magsd.aio import Clock, finish
from magsd.db import accounts, audit, tokens
from magsd.db.database import Database
from magsd.model.errors import CapacityError, InvalidError, NotFoundError, UnauthorizedError
from magsd.model.names import AccountId, TokenId, new_token_id
from magsd.model.records import DEFAULT_ACCOUNT, Account, Principal, Scope, TokenRecord

_CACHED_MAX: Final = 4096
_NAME_MAX: Final = 128
_SECRET_MIN: Final = 16


class Access:
    """Authentication, and the administration of tokens."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: OrderedDict[str, Principal] = OrderedDict()
        self._removals = 0
        self._removed: set[TokenId] = set()
        self._used_at: dict[TokenId, datetime] = {}
        self.on_removed: Callable[[TokenId], object] | None = None
        """Told of each token that is deleted, when it opens nothing any more."""

    async def authenticate(self, secret: str) -> Principal:
        """Return whom a token speaks for. Raises `UnauthorizedError`."""
        hashed = _sha256(secret)
        known = self._known.get(hashed) or await self._load(hashed)
        if known is None or not self.is_valid(known):
            self._known.pop(hashed, None)
            raise UnauthorizedError("the token is not valid: check it, or make another one")
        self._used_at[known.token_id] = self._clock.now()
        return known

    def is_valid(self, principal: Principal) -> bool:
        """Say whether the token of a request that goes on for long is good still."""
        expires_at = principal.expires_at
        is_over = expires_at is not None and expires_at <= self._clock.now()
        return not is_over and principal.token_id not in self._removed

    async def create_token(
        self,
        principal: Principal,
        *,
        name: str,
        account: str | None = None,
        scopes: Collection[str] = (Scope.JOBS,),
        expires_at: datetime | None = None,
    ) -> tuple[TokenRecord, str]:
        """Make a token and return it with its secret, which cannot be had again.

        Another `account` than the caller's own (made if it is new), and the
        scope `admin`, are for callers who are admin themselves. No token makes
        one that outlives it. Raises `InvalidError`.
        """
        wanted = _checked_scopes(scopes)
        if not principal.is_admin and (Scope.ADMIN in wanted or account is not None):
            raise InvalidError("only an admin token can choose an account or give the scope admin")
        _check_name("name", name)
        of_account = principal.account if account is None else account
        _check_name("account", of_account)
        now = self._clock.now()
        if expires_at is not None and expires_at <= now:
            raise InvalidError("expires_at lies in the past")
        last = principal.expires_at
        if last is not None and (expires_at is None or expires_at > last):
            raise InvalidError(
                "expires_at: a token cannot make one that outlives it, and this one expires at "
                f"{last.isoformat(timespec='seconds').replace('+00:00', 'Z')}"
            )
        secret = _new_secret()

        def store(tx: Connection) -> TokenRecord:
            owner = accounts.ensure(tx, of_account, now)
            record = _new_record(owner, name, wanted, now, expires_at)
            tokens.add(tx, record, _sha256(secret))
            audit.add(tx, principal, "token_created", record.token_id, now)
            return record

        return await self._database.write(store), secret

    async def list_tokens(self, principal: Principal) -> list[TokenRecord]:
        """Return the tokens of the caller's account; all of them for an admin."""
        await self.save_last_used()
        return await self._database.read(lambda tx: tokens.listed(tx, _reach(principal)))

    async def get_token(self, principal: Principal, token_id: str) -> TokenRecord:
        """Return a token. Raises `NotFoundError` for one out of the caller's reach."""
        await self.save_last_used()
        return await self._database.read(lambda tx: _within_reach(tx, principal, token_id))

    async def delete_token(self, principal: Principal, token_id: str) -> None:
        """End a token at once, also for what goes on that it began (`is_valid`).

        Raises `NotFoundError` for one out of the caller's reach, `InvalidError`
        for an admin's when the caller's is none.
        """
        now = self._clock.now()

        def remove(tx: Connection) -> TokenId:
            record = _within_reach(tx, principal, token_id)
            if Scope.ADMIN in record.scopes and not principal.is_admin:
                raise InvalidError("only an admin token can delete an admin token")
            tokens.remove(tx, token_id)
            audit.add(tx, principal, "token_deleted", token_id, now)
            return record.token_id

        async def removed() -> None:
            try:
                removed = await self._database.write(remove)
                self._removed.add(removed)
                if self.on_removed is not None:
                    self.on_removed(removed)
            finally:
                self._removals += 1
                self._known.clear()

        await finish(removed())

    async def first_token(self, configured: str | None) -> str | None:
        """Make the admin token of a new installation and return its secret.

        None when there is any token already. `configured` is the secret that
        the operator wants it to have.
        """
        if configured is not None and len(configured) < _SECRET_MIN:
            raise InvalidError(f"the first token needs at least {_SECRET_MIN} characters")
        secret = configured or _new_secret()
        now = self._clock.now()

        def store(tx: Connection) -> bool:
            if tokens.count(tx):
                return False
            _add_admin(tx, "first", secret, now)
            return True

        return secret if await self._database.write(store) else None

    async def another_admin_token(self, name: str) -> str:
        """Make an admin token of the first account and return its secret.

        For whoever may read the database's file, as when the first was lost.
        """
        _check_name("name", name)
        secret = _new_secret()
        now = self._clock.now()
        await self._database.write(lambda tx: _add_admin(tx, name, secret, now))
        return secret

    async def save_last_used(self) -> None:
        """Write down when tokens were used; called now and then, never by a request for jobs."""
        used_at, self._used_at = self._used_at, {}
        if not used_at:
            return
        try:
            await self._database.write(lambda tx: tokens.touch(tx, used_at))
        except CapacityError:  # Next time will do.
            self._used_at = used_at | self._used_at

    async def _load(self, hashed: str) -> Principal | None:
        removals = self._removals
        record = await self._database.read(lambda tx: tokens.by_secret(tx, hashed))
        if record is None:
            return None
        known = Principal(
            record.account_id, record.account, record.token_id, record.scopes, record.expires_at
        )
        # A token deleted while this read was under way must not come back by it.
        if removals == self._removals:
            self._known[hashed] = known
            if len(self._known) > _CACHED_MAX:
                self._known.popitem(last=False)
        return known


def _add_admin(tx: Connection, name: str, secret: str, now: datetime) -> None:
    owner = accounts.ensure(tx, DEFAULT_ACCOUNT, now)
    scopes = frozenset({Scope.ADMIN, Scope.JOBS})
    tokens.add(tx, _new_record(owner, name, scopes, now, None), _sha256(secret))


def _new_record(
    owner: Account,
    name: str,
    scopes: frozenset[Scope],
    now: datetime,
    expires_at: datetime | None,
) -> TokenRecord:
    return TokenRecord(
        new_token_id(), owner.account_id, owner.name, name, scopes, now, expires_at, None
    )


def _within_reach(tx: Connection, principal: Principal, token_id: str) -> TokenRecord:
    record = tokens.get(tx, token_id)
    if record is None or _reach(principal) not in (None, record.account_id):
        raise NotFoundError("there is no such token")
    return record


def _reach(principal: Principal) -> AccountId | None:
    return None if principal.is_admin else principal.account_id


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _new_secret() -> str:
    return f"mags_{secrets.token_hex(20)}"


def _checked_scopes(scopes: Collection[str]) -> frozenset[Scope]:
    try:
        found = frozenset(Scope(scope) for scope in scopes)
    except ValueError as error:
        known = ", ".join(Scope)
        raise InvalidError(f"{error}: the scopes are {known}") from None
    if not found:
        raise InvalidError("scopes must name at least one scope")
    return found


def _check_name(field: str, text: str) -> None:
    if not 1 <= len(text.strip()) <= len(text) <= _NAME_MAX:
        raise InvalidError(f"{field} must have 1 to {_NAME_MAX} characters")
    if not text.isprintable():
        raise InvalidError(f"{field} must not hold control characters")
