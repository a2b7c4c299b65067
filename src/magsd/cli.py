"""Entry point of `magsd`. Results go to standard output, everything else to standard error.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Parts are imported by
the command that needs them: `magsd version` should not wait for a web server.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from magsd import __version__
from magsd.account_commands import app as account_app
from magsd.terminal import progress, say, told

app = typer.Typer(
    help="Serve sandboxes that have a kernel of their own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
image_app = typer.Typer(help="Images that sandboxes start from.", no_args_is_help=True)
app.add_typer(image_app, name="image")
kernel_app = typer.Typer(help="The kernel of microVMs.", no_args_is_help=True)
app.add_typer(kernel_app, name="kernel")
app.add_typer(account_app, name="account")


@app.command()
def serve(
    engine: Annotated[
        str | None, typer.Option(help="In place of the setting: auto, gvisor, or fake.")
    ] = None,
) -> None:
    """Run the service until it is told to stop (SIGTERM, Ctrl-C). Sandboxes outlive it."""
    from magsd import app as composition
    from magsd import config, log

    if engine is not None:
        os.environ[config.variable_of("engine")] = engine
    with told():
        settings = config.load()
        log.configure(settings.log_level)
        log.catch_all()
        composition.serve(settings, say)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one object for programs.")] = False,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Remove what is left of daemons that are gone; no checks."),
    ] = False,
) -> None:
    """Find out what works on this machine, by running a script in a sandbox among other things."""
    from magsd import config, log, trial

    with told():
        settings = config.load()
        log.configure("error")
        if clean:
            is_well = trial.clean(settings, say)
        else:
            is_well = trial.diagnose(settings, say, as_json=as_json)
        if not is_well:
            raise typer.Exit(1)


@app.command()
def migrate() -> None:
    """Bring the database up to date. `serve` does it by itself."""
    from magsd import app as composition
    from magsd import config

    with told():
        settings = config.load()
        composition.migrate(settings)
        say("the database is up to date")


@app.command()
def token(
    name: Annotated[str, typer.Option(help="What the list of tokens calls it.")] = "operator",
) -> None:
    """Make another admin token and print it, also while the server runs."""
    from magsd import app as composition
    from magsd import config

    with told():
        settings = config.load()
        settings.require_database()
        say(composition.make_token(settings, name))


@app.command()
def version() -> None:
    """Print the version."""
    say(f"magsd {__version__}")


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

    with told():
        if name != build.NAME:
            raise InvalidError(f"there is no recipe for {name!r}: only for {build.NAME!r}")
        store = ImageStore(config.load().data_dir)
        built = build.build_standard(store, cache, force, progress)
        say(f"{built.name}  {built.size_bytes / 1e6:.0f} MB  {built.digest[:12]}")


@image_app.command("list")
def image_list() -> None:
    """Print the images that jobs can start from."""
    from magsd import config
    from magsd.storage.images import ImageStore

    with told():
        store = ImageStore(config.load().data_dir)
        images = [store.get(name) for name in store.names()]
        if not images:
            progress("no image yet: run `magsd image build`")
        for image in images:
            size = f"{image.size_bytes / 1e6:.0f} MB"
            say(f"{image.name:16} {size:>8}  {image.built_at:%Y-%m-%d}  {image.digest[:12]}")


@kernel_app.command("install")
def kernel_install(
    cache: Annotated[
        Path | None,
        typer.Option(help="Directory of kernels, shared by data directories."),
    ] = None,
) -> None:
    """Get the newest kernel that will do from this machine's package mirrors, for microVMs.

    Sandboxes that live keep theirs; a service takes it at its next start.
    """
    from datetime import timedelta

    from magsd import config
    from magsd.storage import kernel_package

    with told():
        data_directory = config.load().data_dir
        got = kernel_package.install_kernel(data_directory, cache, progress, timedelta(0))
        say(f"{got.version}  {got.record['release']}")


@kernel_app.command("show")
def kernel_show() -> None:
    """Print the version of the kernel that microVMs get."""
    from magsd import config
    from magsd.engine.kernel import Kernel

    with told():
        kernel = Kernel.read(config.load().data_dir / "kernel")
        say(f"{kernel.version}  {kernel.release}  {kernel.digest[:12]}")


def main() -> None:
    """Run the command line."""
    app()
