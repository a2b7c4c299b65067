"""What several commands take, and the client that they use."""

from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]


def client() -> Any:
    """Return a client. Raises `MagsError` without a token."""
    # Imported here: a command that needs no server should not wait for an HTTP library.
    from mags.client import Mags

    return Mags()
