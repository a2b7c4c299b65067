"""A bar for bytes that move, on standard error, where a person looks. Elsewhere nothing is shown."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """A bar; without `shown`, one that nobody sees."""

    def __init__(self, shown: Any = None, task: Any = None) -> None:
        self._shown = shown
        self._task = task

    def begin(self, size_bytes: int | None) -> None:
        """Begin to move so many bytes, if that is known."""
        if self._shown is not None:
            self._shown.update(self._task, total=size_bytes)

    def advance(self, size_bytes: int) -> None:
        """Have moved so many more."""
        if self._shown is not None:
            self._shown.update(self._task, advance=size_bytes)

    def wait(self, what: str) -> None:
        """Say what is waited for, when all has been moved."""
        if self._shown is not None:
            self._shown.update(self._task, description=what, total=None)


@contextmanager
def moving(what: str) -> Iterator[Bar]:
    """Show a bar inside the block."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    # Loaded here alone: it takes longer than most commands.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield Bar(shown, shown.add_task(what, total=None))
