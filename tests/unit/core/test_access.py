"""Accounts, tokens, and what the cache must never do."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from magsd.core.access import Access
from magsd.db import tokens
from magsd.db.database import Database
from magsd.model.errors import InvalidError, NotFoundError, UnauthorizedError
from magsd.model.records import Scope

FIRST = "a-secret-of-the-tests"


class HeldClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 31, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return HeldClock()


@pytest.fixture
async def database(tmp_path):
    database = await Database.open(f"sqlite:///{tmp_path}/mags.db")
    yield database
    await database.aclose()


@pytest.fixture
async def access(database, clock):
    access = Access(database, clock)
    await access.first_token(FIRST)
    return access


@pytest.fixture
async def admin(access):
    return await access.authenticate(FIRST)


async def test_the_first_token_is_made_once(database, clock):
    access = Access(database, clock)
    with pytest.raises(InvalidError):
        await access.first_token("short")
    secret = await access.first_token(None)
    assert secret.startswith("mags_")
    assert await access.first_token(None) is None
    assert await access.first_token(FIRST) is None
    principal = await access.authenticate(secret)
    assert (principal.account, principal.is_admin) == ("default", True)
    with pytest.raises(UnauthorizedError):
        await access.authenticate(FIRST)


@pytest.mark.parametrize("secret", ["", "mags_", "\ud800", "' OR 1=1 --"])
async def test_what_is_no_token_opens_nothing(access, secret):
    with pytest.raises(UnauthorizedError):
        await access.authenticate(secret)


async def test_a_token_speaks_for_its_account(access, admin):
    record, secret = await access.create_token(admin, name="ci", account="other")
    principal = await access.authenticate(secret)
    assert (principal.account, principal.scopes) == ("other", frozenset({Scope.JOBS}))
    assert principal.account_id == record.account_id != admin.account_id
    again, _ = await access.create_token(admin, name="second", account="other")
    assert again.account_id == record.account_id


async def test_what_only_an_admin_may(access, admin, clock):
    _, secret = await access.create_token(admin, name="user", account="other")
    user = await access.authenticate(secret)
    for wanted in ({"account": "default"}, {"scopes": ["admin"]}):
        with pytest.raises(InvalidError, match="admin"):
            await access.create_token(user, name="x", **wanted)
    await clock.sleep(1)
    own, _ = await access.create_token(user, name="own")
    assert own.account == "other"
    assert [token.name for token in await access.list_tokens(user)] == ["user", "own"]
    assert len(await access.list_tokens(admin)) == 3
    with pytest.raises(NotFoundError):
        await access.delete_token(user, admin.token_id)
    assert await access.authenticate(FIRST) == admin


async def test_a_deleted_token_is_of_no_use_at_once(access, admin):
    record, secret = await access.create_token(admin, name="ci")
    await access.authenticate(secret)
    await access.delete_token(admin, record.token_id)
    with pytest.raises(UnauthorizedError):
        await access.authenticate(secret)
    with pytest.raises(NotFoundError):
        await access.delete_token(admin, record.token_id)


async def test_a_token_that_is_read_while_it_is_deleted_does_not_stay(access, admin):
    for _ in range(20):
        record, secret = await access.create_token(admin, name="ci")
        reads = [access.authenticate(secret) for _ in range(3)]
        await asyncio.gather(
            *reads, access.delete_token(admin, record.token_id), return_exceptions=True
        )
        with pytest.raises(UnauthorizedError):
            await access.authenticate(secret)


async def test_a_token_ends_at_its_hour(access, admin, clock):
    expires_at = clock.now() + timedelta(hours=1)
    _, secret = await access.create_token(admin, name="ci", expires_at=expires_at)
    await access.authenticate(secret)
    await clock.sleep(3600)
    with pytest.raises(UnauthorizedError):
        await access.authenticate(secret)
    with pytest.raises(InvalidError, match="past"):
        await access.create_token(admin, name="ci", expires_at=expires_at)


@pytest.mark.parametrize(
    "wanted",
    [
        {"name": ""},
        {"name": " "},
        {"name": "x" * 129},
        {"name": "a\nb"},
        {"name": "\ud800"},
        {"name": "x", "account": ""},
        {"name": "x", "account": "\0"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["ssh"]},
    ],
)
async def test_what_cannot_be_a_token_is_refused(access, admin, wanted):
    with pytest.raises(InvalidError):
        await access.create_token(admin, **wanted)


async def test_the_last_use_is_written_down(access, admin, clock):
    (token,) = await access.list_tokens(admin)
    assert token.last_used_at == clock.now()
    await clock.sleep(60)
    await access.authenticate(FIRST)
    (token,) = await access.list_tokens(admin)
    assert token.last_used_at == clock.now()


async def test_a_token_cannot_make_one_that_outlives_it(access, admin, clock):
    ends = clock.now() + timedelta(hours=1)
    for scopes in (["jobs"], ["jobs", "admin"]):
        _, secret = await access.create_token(admin, name="ci", scopes=scopes, expires_at=ends)
        principal = await access.authenticate(secret)
        for wanted in (None, ends + timedelta(microseconds=1)):
            with pytest.raises(InvalidError, match=r"outlives it.*2026-01-31T01:00:00Z"):
                await access.create_token(principal, name="heir", expires_at=wanted)
        record, _ = await access.create_token(principal, name="heir", expires_at=ends)
        assert record.expires_at == ends


async def test_only_an_admin_ends_an_admins_token(access, admin):
    _, secret = await access.create_token(admin, name="user")
    user = await access.authenticate(secret)
    with pytest.raises(InvalidError, match="admin"):
        await access.delete_token(user, admin.token_id)
    assert await access.authenticate(FIRST) == admin
    await access.delete_token(user, user.token_id)
    with pytest.raises(UnauthorizedError):
        await access.authenticate(secret)


async def test_whoever_goes_on_learns_that_a_token_has_ended(access, admin, clock):
    made, secret = await access.create_token(
        admin, name="ci", expires_at=clock.now() + timedelta(hours=1)
    )
    principal, (_, other) = (
        await access.authenticate(secret),
        await access.create_token(admin, name="other"),
    )
    going_on = await access.authenticate(other)
    assert access.is_valid(principal)
    await clock.sleep(3600)
    assert not access.is_valid(principal)
    assert access.is_valid(going_on)
    await access.delete_token(admin, going_on.token_id)
    assert not access.is_valid(going_on)
    assert access.is_valid(admin)
    assert made.token_id == principal.token_id


async def test_when_a_token_was_used_is_written_down_later(access, admin, clock, database):
    made, secret = await access.create_token(admin, name="ci", account="other")
    assert (await access.get_token(admin, made.token_id)).last_used_at is None
    await access.authenticate(secret)
    await clock.sleep(5)
    user = await access.authenticate(secret)
    stored = await database.read(lambda tx: tokens.get(tx, made.token_id))
    assert stored.last_used_at is None
    shown = await access.get_token(user, made.token_id)
    assert shown.last_used_at == clock.now()
    assert shown == await database.read(lambda tx: tokens.get(tx, made.token_id))
    for token_id in (admin.token_id, "tok_0", ""):
        with pytest.raises(NotFoundError):
            await access.get_token(user, token_id)
