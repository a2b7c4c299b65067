"""What a check says, and how the checks of a run are shown."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Scripts run, but something around them does not work."""
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was looked at, what was seen, and what to do."""

    what: str
    verdict: Verdict
    seen: str
    step: str = ""

    def line(self) -> str:
        """Return the check as a line for people."""
        step = f"; {self.step}" if self.step else ""
        return f"{self.verdict:4}  {self.what:11}  {' '.join(self.seen.split())}{step}"


async def report(
    checks: AsyncIterator[Check], say: Callable[[str], None], *, as_json: bool = False
) -> bool:
    """Say each check when it is done, or all of them as one JSON object at the end.

    Return whether none has failed.
    """
    done = []
    async for check in checks:
        done.append(check)
        if not as_json:
            say(check.line())
    is_well = not any(check.verdict is Verdict.FAIL for check in done)
    if as_json:
        found = [asdict(check) for check in done]
        say(json.dumps({"is_well": is_well, "checks": found}, indent=1))
    return is_well
