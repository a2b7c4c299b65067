"""What is granted, in memory: which name and key open which job, and until when."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from magsd.core.entries import Entries
from magsd.core.events import Events
from magsd.model.errors import InvalidError
from magsd.model.grants import KEY_TIME, Alias, Grant, GrantKind, check_alias, label_of
from magsd.model.lifecycle import Status
from magsd.model.names import (
    AccountId,
    TokenId,
    new_grant_id,
    new_request_id,
    new_subdomain,
)
from magsd.model.records import JobStatus

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ACCOUNT, OTHER = AccountId("acc_1"), AccountId("acc_2")
DOMAIN = "apps.example"


class World:
    """Jobs that were published, a clock that stands, and what is granted of them."""

    def __init__(self):
        self.at = NOW
        self.events = Events(100)
        self.entries = Entries(self.events, self, (DOMAIN, "apps.magpiecloud.com"))

    def now(self):
        return self.at

    def job(self, workspace=None, account=ACCOUNT, created_at=NOW) -> JobStatus:
        known = {
            "request_id": new_request_id(),
            "account_id": account,
            "subdomain": new_subdomain(),
            "status": Status.RUNNING,
            "generation": 1,
            "workspace_id": workspace,
            "created_at": created_at,
        }
        blank = dict.fromkeys(field.name for field in dataclasses.fields(JobStatus))
        return self.published(JobStatus(**{**blank, **known}))

    def published(self, last, **changes) -> JobStatus:
        status = dataclasses.replace(last, **changes)
        self.events.publish(status)
        return status

    def grant(self, job, port=80, **fields) -> Grant:
        kind = GrantKind.SSH if "fingerprint" in fields else GrantKind.HTTP
        granted = {"token_id": TokenId("tok_1"), "ends_at": None, **fields}
        grant = Grant(
            new_grant_id(), job.account_id, job.request_id, kind, port, self.at, **granted
        )
        self.entries.put(grant)
        return grant

    def key(self, job, fingerprint="SHA256:x", **fields) -> Grant:
        fields = {"expires_at": self.at + KEY_TIME, **fields}
        return self.grant(job, 22, fingerprint=fingerprint, **fields)

    def alias(self, name, workspace, account=ACCOUNT, port=8080):
        self.entries.put_alias(Alias(name, account, workspace, port, self.at))


@pytest.fixture
def world():
    return World()


def host(job, domain=DOMAIN):
    return f"{job.subdomain}.{domain}"


# --- names -----------------------------------------------------------------------


def test_a_job_is_found_by_its_name_once_something_was_granted(world):
    job, other = world.job(), world.job()
    assert world.entries.find_url(host(job)) is None
    world.grant(job, 3000)
    assert world.entries.find_url(host(job)) == (job.request_id, 3000)
    assert world.entries.find_url(host(job, "apps.magpiecloud.com")) == (job.request_id, 3000)
    assert world.entries.find_url(host(other)) is None


@pytest.mark.parametrize(
    "made", ["{0}", "{0}.", "x.{0}.apps.example", "{0}.apps.example.", "{0}.other", "", ".", DOMAIN]
)
def test_no_other_name_finds_it(world, made):
    job = world.job()
    world.grant(job)
    assert world.entries.find_url(made.format(job.subdomain)) is None


def test_the_last_port_is_the_one_that_the_url_shows(world):
    job = world.job()
    first = world.grant(job, 80)
    second = world.grant(job, 81)
    world.entries.drop([first])
    assert world.entries.find_url(host(job)) == (job.request_id, 81)
    assert world.entries.port_of(job.request_id) == 81
    world.entries.drop([second, first])
    assert world.entries.find_url(host(job)) is None
    assert world.entries.port_of(job.request_id) is None


def test_names_that_nobody_knows_leave_nothing_behind(world):
    world.grant(world.job())
    before = {
        name: len(value) for name, value in vars(world.entries).items() if hasattr(value, "__len__")
    }
    for number in range(1000):
        assert world.entries.find_url(f"{number:012x}.{DOMAIN}") is None
        assert world.entries.use_key(f"SHA256:{number}") is None
    after = {
        name: len(value) for name, value in vars(world.entries).items() if hasattr(value, "__len__")
    }
    assert after == before


# --- ends ------------------------------------------------------------------------


def test_a_job_that_has_ended_is_found_no_more(world):
    job = world.job("box")
    world.grant(job)
    world.key(job)
    world.alias("name", "box")
    over = world.published(job, status=Status.COMPLETED)
    assert world.entries.find_url(host(job)) is None
    assert world.entries.find_url(f"name.{DOMAIN}") is None
    assert world.entries.use_key("SHA256:x") is None
    assert world.entries.drop_job(over.request_id)
    assert not world.entries.drop_job(over.request_id)


def test_one_that_sleeps_is(world):
    job = world.published(world.job(), status=Status.SLEEPING)
    world.grant(job)
    assert world.entries.find_url(host(job)) == (job.request_id, 80)


def test_a_grant_of_a_job_that_is_over_is_forgotten(world):
    job = world.published(world.job(), status=Status.ERROR)
    world.grant(job)
    assert not world.entries.drop_past()


def test_what_a_token_granted_goes_with_it(world):
    job = world.job()
    world.grant(job, token_id=TokenId("tok_1"))
    world.key(job, token_id=TokenId("tok_2"))
    assert world.entries.drop_token(TokenId("tok_1"))
    assert world.entries.find_url(host(job)) is None
    assert world.entries.use_key("SHA256:x") == job.request_id
    assert not world.entries.drop_token(TokenId("tok_1"))


def test_and_ends_when_the_token_does(world):
    job = world.job()
    ends_at = NOW + timedelta(hours=1)
    world.grant(job, ends_at=ends_at)
    world.key(job, ends_at=ends_at)
    world.at = ends_at - timedelta(seconds=1)
    assert world.entries.use_key("SHA256:x")
    world.at = ends_at
    assert world.entries.find_url(host(job)) is None
    assert world.entries.use_key("SHA256:x") is None
    assert world.entries.drop_past()


def test_a_key_lives_for_a_day_after_its_last_use(world):
    job = world.job()
    key = world.key(job)
    for _ in range(3):
        world.at += KEY_TIME - timedelta(seconds=1)
        assert world.entries.use_key("SHA256:x") == job.request_id
    until = world.at + KEY_TIME
    assert world.entries.take_used() == {key.grant_id: until}
    assert world.entries.take_used() == {}
    world.at = until
    assert world.entries.use_key("SHA256:x") is None


def test_what_could_not_be_written_down_is_tried_again_unless_it_is_old(world):
    job = world.job()
    key = world.key(job)
    world.entries.use_key("SHA256:x")
    used = world.entries.take_used()
    world.at += timedelta(minutes=1)
    world.entries.use_key("SHA256:x")
    world.entries.give_back_used(used)
    assert world.entries.take_used() == {key.grant_id: world.at + KEY_TIME}


# --- aliases ---------------------------------------------------------------------


def test_an_alias_follows_the_job_that_has_the_workspace(world):
    world.alias("name", "box", port=3000)
    assert world.entries.find_url(f"name.{DOMAIN}") is None
    world.job("box", account=OTHER)
    world.job("another")
    assert world.entries.find_url(f"name.{DOMAIN}") is None
    first = world.job("box")
    assert world.entries.find_url(f"name.{DOMAIN}") == (first.request_id, 3000)
    second = world.job("box", created_at=NOW + timedelta(seconds=1))
    assert world.entries.find_url(f"name.{DOMAIN}") == (second.request_id, 3000)
    # The first is being stopped, and speaks once more before it ends.
    world.published(first, generation=2)
    world.published(first, status=Status.COMPLETED)
    assert world.entries.find_url(f"name.{DOMAIN}") == (second.request_id, 3000)
    world.entries.drop_alias("name")
    assert world.entries.find_url(f"name.{DOMAIN}") is None


def test_aliases_are_listed_by_account(world):
    world.alias("b", "box")
    world.alias("a", "box")
    world.alias("c", "box", account=OTHER)
    assert [alias.subdomain for alias in world.entries.aliases_of(ACCOUNT)] == ["b", "a"]


# --- who may enter ---------------------------------------------------------------


def test_only_what_was_granted_can_be_entered(world):
    job = world.job("box")
    assert not world.entries.may_enter(job)
    world.alias("name", "box", account=OTHER)
    world.alias("name2", "other")
    assert not world.entries.may_enter(job)
    for make in (world.grant, world.key):
        grant = make(job)
        assert world.entries.may_enter(job)
        world.entries.drop([grant])
        assert not world.entries.may_enter(job)
    world.alias("name3", "box")
    assert world.entries.may_enter(job)
    world.entries.drop_alias("name3")
    assert not world.entries.may_enter(job)
    world.grant(job, ends_at=NOW + timedelta(hours=1))
    world.at = NOW + timedelta(hours=1)
    assert not world.entries.may_enter(job)


# --- names of aliases ------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "0", "my-app", "x" * 63, "MiXed", "0123456789abc"])
def test_what_can_be_an_alias(name):
    assert check_alias(name) == name.lower()


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "a.b", "a_b", "x" * 64, "ä", "a b", "0123456789ab", "ABCDEFABCDEF", "a\n"],
)
def test_what_cannot(name):
    with pytest.raises(InvalidError, match="subdomain"):
        check_alias(name)


def test_a_label_is_one(world):
    assert label_of("a.x", ("x",)) == "a"
    for other in ("x", ".x", "a.b.x", "a.xx", "a"):
        assert label_of(other, ("x",)) is None
