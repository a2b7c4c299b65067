"""`magsd serve` that writes down when its steps begin and end: `python -m bench.traced FILE`.

The steps are wrapped from outside; a line of FILE is a step's name, when it
began and when it ended, in seconds of the clock that `time.perf_counter`
reads, which all processes of the machine share.
"""

import functools
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO

import magsd.core.launch
from magsd.cli import main as magsd_main
from magsd.core.vm_link import VmLink
from magsd.db.database import Database
from magsd.guest.shim import ShimConnection

COMMIT = "commit"
BEGIN = "begin"
CLAIM = "claim"
HAND_OVER_ = "hand over"
EXEC = "exec"
ENDED = "ended"


def main() -> None:
    """Wrap the steps, then serve."""
    with Path(sys.argv[1]).open("w", encoding="ascii") as lines:
        for owner, function, name in (
            (Database, "write", COMMIT),
            (magsd.core.launch, "begin", BEGIN),
            (ShimConnection, "open_durable", EXEC),
            (VmLink, "script_ended", ENDED),
        ):
            _wrap(owner, function, lambda *_, name=name, **__: name, lines)
        _wrap(ShimConnection, "request", lambda _, verb, **__: verb, lines)
        sys.argv = ["magsd", "serve"]
        magsd_main()


def _wrap(owner: Any, function: str, name_of: Callable[..., str], lines: TextIO) -> None:
    inner: Callable[..., Awaitable[Any]] = getattr(owner, function)

    @functools.wraps(inner)
    async def outer(*arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return await inner(*arguments, **keywords)
        finally:
            ended = time.perf_counter()
            name = name_of(*arguments, **keywords)
            lines.write(f"{name} {began:.6f} {ended:.6f}\n")

    setattr(owner, function, outer)


if __name__ == "__main__":
    main()
