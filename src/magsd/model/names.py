"""The ids of everything that has one, and the rules for names that users choose.

Ids are distinct types so that a checker tells a job from a VM.
"""

import re
import secrets
import uuid
from typing import Final, NewType

from magsd.model.errors import InvalidError

AccountId = NewType("AccountId", str)
"""`acc_` and 16 hex digits."""

TokenId = NewType("TokenId", str)
"""`tok_` and 16 hex digits; names a token, is not its secret."""

RequestId = NewType("RequestId", str)
"""UUID4: a job, as clients know it."""

RunId = NewType("RunId", str)
"""`run_` and 16 hex digits: one life of a VM for a job."""

VmId = NewType("VmId", str)
"""8 hex digits: a VM, and the name of its run directory."""

WorkspaceId = NewType("WorkspaceId", str)
"""`wsp_` and 16 hex digits: a workspace whatever it is called; what clients call its id is its
name."""

FileId = NewType("FileId", str)
"""`file_` and 32 hex digits: an upload."""

GrantId = NewType("GrantId", str)
"""`grant_` and 16 hex digits: a way to a job from outside."""

Subdomain = NewType("Subdomain", str)
"""12 hex digits, stable for a job, not derived from its id."""

JOB_NAME_MAX: Final = 128
WORKSPACE_NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""A pattern."""
_REQUEST_ID: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)
_VM_ID: Final = re.compile(r"[0-9a-f]{8}")


def new_account_id() -> AccountId:
    """Return a fresh account id."""
    return AccountId(f"acc_{secrets.token_hex(8)}")


def new_token_id() -> TokenId:
    """Return a fresh token id."""
    return TokenId(f"tok_{secrets.token_hex(8)}")


def new_request_id() -> RequestId:
    """Return a fresh job id."""
    return RequestId(str(uuid.uuid4()))


def new_run_id() -> RunId:
    """Return a fresh run id."""
    return RunId(f"run_{secrets.token_hex(8)}")


def new_vm_id() -> VmId:
    """Return a fresh VM id."""
    return VmId(secrets.token_hex(4))


def new_workspace_id() -> WorkspaceId:
    """Return a fresh workspace id."""
    return WorkspaceId(f"wsp_{secrets.token_hex(8)}")


def new_subdomain() -> Subdomain:
    """Return a fresh subdomain label."""
    return Subdomain(secrets.token_hex(6))


def new_grant_id() -> GrantId:
    """Return a fresh id of a grant."""
    return GrantId(f"grant_{secrets.token_hex(8)}")


def new_file_id() -> FileId:
    """Return a fresh id of an upload."""
    return FileId(f"file_{secrets.token_hex(16)}")


def is_request_id(text: str) -> bool:
    """Say whether `text` has the form of a job id."""
    return _REQUEST_ID.fullmatch(text) is not None


def is_vm_id(text: str) -> bool:
    """Say whether `text` has the form of a VM id."""
    return _VM_ID.fullmatch(text) is not None


def check_job_name(text: str) -> None:
    """Raise `InvalidError` when `text` cannot name a job."""
    if not 1 <= len(text) <= JOB_NAME_MAX:
        raise InvalidError(f"name must have 1 to {JOB_NAME_MAX} characters")
    if not text.isprintable():
        raise InvalidError("name must not hold control characters")


def check_workspace_name(field: str, text: str) -> None:
    """Raise `InvalidError` that begins with `field` when `text` cannot name a workspace."""
    if re.fullmatch(WORKSPACE_NAME, text) is None:
        raise InvalidError(
            f"{field} must have 1 to 63 of a-z A-Z 0-9 . _ - and begin with a letter or digit"
        )
