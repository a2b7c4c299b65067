"""What all commands share: how they end when something is refused."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


def say(line: str) -> None:
    """Print a result."""
    typer.echo(line)
    sys.stdout.flush()


def progress(line: str) -> None:
    """Print what is no result."""
    typer.echo(line, err=True)


@contextmanager
def told() -> Iterator[None]:
    """End with exit code 1 and one line when something is refused or fails."""
    from magsd.model.errors import MagsError

    try:
        yield
    except MagsError as error:
        detail = f" ({error.detail})" if error.detail else ""
        typer.echo(f"magsd: {error.message}{detail}", err=True)
        raise typer.Exit(1) from None
