"""Who a guest is: what it must be told, and acknowledge, before anything runs in it."""

import secrets
from datetime import datetime
from typing import Final

from magsd.guest import streams
from magsd.guest.shim import ShimConnection

_ENTROPY_BYTES: Final = 64


async def introduce(connection: ShimConnection, hostname: str, now: datetime) -> None:
    """Give a guest a name, a machine id, a clock and randomness of its own.

    A kernel that is a copy of another would give out the numbers that others have
    had. Raises `ShimError` when it does not acknowledge all of them: then it is of no use.
    """
    await streams.control(
        connection,
        "identity",
        hostname=hostname,
        machine_id=secrets.token_hex(16),
        clock_ns=_ns(now),
        entropy=secrets.token_hex(_ENTROPY_BYTES),
    )


async def refresh(connection: ShimConnection, now: datetime) -> None:
    """Tell a guest that stood still the time, and give it randomness; it stays who it is.

    Raises `ShimError` when it does not acknowledge both.
    """
    entropy = secrets.token_hex(_ENTROPY_BYTES)
    await streams.control(connection, "identity", clock_ns=_ns(now), entropy=entropy)


async def set_clock(connection: ShimConnection, now: datetime) -> None:
    """Tell a guest the time, and nothing else. Raises `ShimError`."""
    await streams.control(connection, "identity", clock_ns=_ns(now))


def _ns(now: datetime) -> str:
    return str(int(now.timestamp() * 1e9))
