"""What an agent is asked for, as the pretended one reads it. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from magsd.guest.wire import WireError, parse_fields


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """An `exec`."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    has_input: bool

    @classmethod
    def parse(cls, payload: bytes) -> Self | None:
        """Return what a payload asks for; None when it is no exec."""
        try:
            fields = parse_fields(payload)
        except WireError:
            return None
        arguments = tuple(fields.all("arg"))
        if fields.word != "exec" or not arguments:
            return None
        pairs = (text.partition("=") for text in fields.all("env"))
        environment = {name: value for name, _, value in pairs if name}
        return cls(
            arguments, environment, fields.get("cwd", "/root"), fields.get("stdin") == "open"
        )


class Bucket:
    """How much a VM may print: so many bytes a second in the long run, and more at once."""

    __slots__ = ("_at", "_burst", "_grant", "_level", "_rate")

    def __init__(self, rate: int, burst: int) -> None:
        """`rate` 0: no limit."""
        self._rate = rate
        self._burst = burst
        self._grant = min(max(rate // 16, 64 << 10), 512 << 10, burst)
        self._level = float(burst)
        self._at: float | None = None

    def wait_s(self, now: float) -> float:
        """Return how long it takes until something may be printed; 0: now."""
        if not self._rate:
            return 0.0
        passed = now - self._at if self._at is not None else 0.0
        self._at = now
        self._level = min(self._burst, self._level + passed * self._rate)
        missing = self._grant - self._level
        # Never a wait too short for the clock to see.
        return max(missing / self._rate, 0.001) if missing > 0 else 0.0

    def take(self, count: int) -> None:
        """Note that so much was printed."""
        self._level -= count
