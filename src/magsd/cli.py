"""Entry point of `magsd`. Results go to standard output, everything else to standard error.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Parts are imported by
the command that needs them: `magsd version` should not wait for a web server.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from magsd import __version__

app = typer.Typer(
    help="Serve sandboxes that have a kernel of their own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
image_app = typer.Typer(help="Images that sandboxes start from.", no_args_is_help=True)
app.add_typer(image_app, name="image")


@app.command()
def serve() -> None:
    """Run the service until it is told to stop (SIGTERM, Ctrl-C). Sandboxes outlive it."""
    from magsd import app as composition
    from magsd import config, log

    with _told():
        settings = config.load()
        log.configure(settings.log_level)
        composition.serve(settings, _say)


@app.command()
def doctor() -> None:
    """Find out what works on this machine, by running a script in a sandbox among other things."""
    from magsd import app as composition
    from magsd import config, log

    with _told():
        settings = config.load()
        log.configure("error")
        if not composition.diagnose(settings, _say):
            raise typer.Exit(1)


@app.command()
def migrate() -> None:
    """Bring the database up to date. `serve` does it by itself."""
    from magsd import app as composition
    from magsd import config

    with _told():
        settings = config.load()
        composition.migrate(settings)
        _say(f"{settings.effective_database_url} is up to date")


@app.command()
def token(
    name: Annotated[str, typer.Option(help="What the list of tokens calls it.")] = "operator",
) -> None:
    """Make another admin token and print it, also while the server runs."""
    from magsd import app as composition
    from magsd import config
    from magsd.model.errors import InvalidError

    with _told():
        settings = config.load()
        if settings.database_url is None and not (settings.data_dir / "mags.db").exists():
            raise InvalidError(f"{settings.data_dir} holds no database: run `magsd serve` first")
        _say(composition.make_token(settings, name))


@app.command()
def version() -> None:
    """Print the version."""
    _say(f"magsd {__version__}")


@app.command()
def openapi() -> None:
    """Print the description of the HTTP interface, an OpenAPI document."""
    from magsd.api.app import openapi_json

    typer.echo(openapi_json(), nl=False)


@image_app.command("build")
def image_build(
    name: Annotated[str, typer.Argument(help="Only `standard`.")] = "standard",
    cache: Annotated[
        Path | None,
        typer.Option(help="Directory of finished builds, shared by data directories."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build even if it is there and whole.")
    ] = False,
) -> None:
    """Build image `standard` from this machine's package mirrors, if it is not there yet."""
    from magsd import config
    from magsd.model.errors import InvalidError
    from magsd.storage import build
    from magsd.storage.images import ImageStore

    with _told():
        if name != build.NAME:
            raise InvalidError(f"there is no recipe for {name!r}: only for {build.NAME!r}")
        store = ImageStore(config.load().data_dir)
        built = build.build_standard(store, cache, force, _progress)
        _say(f"{built.name}  {built.size_bytes / 1e6:.0f} MB  {built.digest[:12]}")


@image_app.command("list")
def image_list() -> None:
    """Print the images that jobs can start from."""
    from magsd import config
    from magsd.storage.images import ImageStore

    with _told():
        store = ImageStore(config.load().data_dir)
        images = [store.get(name) for name in store.names()]
        if not images:
            _progress("no image yet: run `magsd image build`")
        for image in images:
            size = f"{image.size_bytes / 1e6:.0f} MB"
            _say(f"{image.name:16} {size:>8}  {image.built_at:%Y-%m-%d}  {image.digest[:12]}")


def _say(line: str) -> None:
    typer.echo(line)
    sys.stdout.flush()


def _progress(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _told() -> Iterator[None]:
    """End with exit code 1 and one line when something is refused or fails."""
    from magsd.model.errors import MagsError

    try:
        yield
    except MagsError as error:
        detail = f" ({error.detail})" if error.detail else ""
        typer.echo(f"magsd: {error.message}{detail}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """Run the command line."""
    app()
