"""Who did what to tokens and accounts; written in the transaction that did it."""

from datetime import datetime

from sqlalchemy import Connection, insert

from magsd.db.schema import audit
from magsd.model.records import Principal


def add(tx: Connection, principal: Principal, action: str, subject: str, at: datetime) -> None:
    """Record that `principal` did `action` (past tense) to `subject`."""
    tx.execute(
        insert(audit),
        {
            "account_id": principal.account_id,
            "token_id": principal.token_id,
            "action": action,
            "subject": subject,
            "at": at,
        },
    )
