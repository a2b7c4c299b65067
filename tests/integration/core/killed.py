"""A scene is played to its end, and again to points where its daemon is killed."""

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.integration.core.players import PLAYERS

IS_FULL = os.environ.get("MAGS_TEST_FULL") == "1"


async def at_any_point(
    folder: Path,
    template: Path,
    attempt: Callable[[Path, str], Awaitable[list[str]]],
    sample: int | None,
) -> None:
    """See `attempt` play a scene to each of its points and recover from that.

    It is given a data directory of its own and the point, empty for the end, and returns the
    trail of the play. `sample`: so many points, chosen by a seed, unless all are to be tried.
    """

    async def tried(number: int, point: str) -> list[str]:
        directory = folder / f"{number}" / "data"
        directory.parent.mkdir()
        shutil.copytree(template, directory)
        try:
            trail = await attempt(directory, point)
        except Exception as error:
            raise AssertionError(f"killed {point or 'at the end'}: {error!r}") from error
        shutil.rmtree(directory.parent)
        return trail

    trail = await tried(0, "")
    assert trail[-1] == "end"
    points = list(dict.fromkeys(line.removeprefix("point ") for line in trail if "point " in line))
    if sample is not None and not IS_FULL:
        points = random.sample(points, min(sample, len(points)))
    limit = asyncio.Semaphore(2 * PLAYERS)

    async def limited(number: int, point: str) -> None:
        async with limit:
            await tried(number, point)

    attempts = [limited(number, point) for number, point in enumerate(points, 1)]
    found = await asyncio.gather(*attempts, return_exceptions=True)
    wrong = [error for error in found if error is not None]
    assert not wrong, "\n".join(f"{error} ({error.__cause__!r})" for error in wrong)
