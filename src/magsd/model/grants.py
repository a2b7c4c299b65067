"""Grants: what may be reached inside a job's VM from outside, and by whom. Plain data and rules."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from magsd.model.errors import InvalidError
from magsd.model.names import AccountId, GrantId, RequestId, TokenId

DEFAULT_PORT: Final = 8080
"""Where the server inside is taken to listen when nobody says."""
PUBLISHED_DOMAIN: Final = "apps.magpiecloud.com"
"""Published clients make up URLs of this domain, whatever a server says."""
SSH_PORT: Final = 22
"""Asking for it means SSH, whatever listens inside."""
KEYS_MAX: Final = 32
"""SSH keys of a job; with one more the oldest goes."""
KEY_TIME: Final = timedelta(hours=24)
"""So long a key opens a job after it was made or used last."""
ALIASES_MAX: Final = 1000
"""Of an account."""
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[0-9a-f]{12}")


class GrantKind(StrEnum):
    """By which way a job is reached."""

    HTTP = "http"
    SSH = "ssh"


@dataclass(frozen=True, slots=True)
class Grant:
    """One way to a job."""

    grant_id: GrantId
    account_id: AccountId
    request_id: RequestId
    kind: GrantKind
    port: int
    created_at: datetime
    token_id: TokenId | None
    """Whose token asked for it: it goes with the token."""
    ends_at: datetime | None
    """When the token ends; None: never."""
    fingerprint: str | None = None
    """Of an SSH key."""
    expires_at: datetime | None = None
    """Of an SSH key: each use puts it off."""

    def is_current(self, now: datetime) -> bool:
        """Say whether it opens anything still."""
        return all(end is None or now < end for end in (self.ends_at, self.expires_at))


@dataclass(frozen=True, slots=True)
class Alias:
    """A name of a workspace's live job in URLs."""

    subdomain: str
    account_id: AccountId
    workspace: str
    """The workspace's name; it need not exist."""
    port: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SshAccess:
    """Where a job is reached by SSH, and a key that opens it."""

    host: str
    port: int
    private_key: str = field(repr=False)
    """Nobody else has it."""


def check_alias(text: str) -> str:
    """Return an alias in lower case. Raises `InvalidError` for what cannot be one."""
    label = text.lower()
    if _LABEL.fullmatch(label) is None:
        raise InvalidError(
            "subdomain must have 1 to 63 of a-z 0-9 and -, and neither begin nor end with -"
        )
    if _SUBDOMAIN.fullmatch(label):
        raise InvalidError("subdomain: 12 hex digits are how jobs are called: choose another")
    return label


def label_of(host: str, domains: tuple[str, ...]) -> str | None:
    """Return the one label that `host` has before one of `domains`; None for any other host."""
    for domain in domains:
        label, dot, rest = host.partition(".")
        if dot and label and rest == domain:
            return label
    return None
