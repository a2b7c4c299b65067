"""`mags workspace …`: the environments that jobs keep, and archives of them."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import typer

from mags.cli import output, progress
from mags.cli.options import JsonOption, client
from mags.errors import MagsError

app = typer.Typer(
    help="Keep, copy, move and delete workspaces.",
    no_args_is_help=True,
)

NameArgument = Annotated[str, typer.Argument(metavar="WORKSPACE", help="A workspace's name.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", min=1, help="A version; the newest when left out.")
]
_PIECE_BYTES = 1 << 18
_STREAM = "-"


@app.command("list")
def list_workspaces(as_json: JsonOption = False) -> None:
    """List workspaces, by name."""
    with client() as mags:
        reply = mags.list_workspaces()
    if as_json:
        output.write_json(reply)
        return
    rows = [
        [
            each["workspace_id"],
            str(each["version"]),
            output.size(each["size_bytes"]),
            each["updated_at"],
            each["in_use_by"] or "",
        ]
        for each in reply["workspaces"]
    ]
    output.write_table(["WORKSPACE", "VERSION", "SIZE", "CHANGED", "USED BY"], rows)
    if not rows:
        output.note("none yet: a job with a workspace makes it, or `mags workspace import`")


@app.command()
def versions(workspace: NameArgument, as_json: JsonOption = False) -> None:
    """List a workspace's versions, the newest first."""
    with client() as mags:
        reply = mags.workspace_versions(workspace)
    if as_json:
        output.write_json(reply)
        return
    rows = [
        [
            str(each["version"]),
            each["state"],
            output.size(each["size_bytes"]),
            str(each["layers"]),
            each["image"],
            each["created_at"],
        ]
        for each in reply["versions"]
    ]
    output.write_table(["VERSION", "STATE", "SIZE", "LAYERS", "IMAGE", "CREATED"], rows)


@app.command()
def restore(
    workspace: NameArgument,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Its number.")],
    as_json: JsonOption = False,
) -> None:
    """Make an earlier version the newest again, under a number of its own."""
    with client() as mags:
        reply = mags.restore_workspace(workspace, version)
    _tell(reply, as_json, f"version {version} of {workspace} is version {reply['version']} now")


@app.command()
def fork(
    workspace: NameArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new workspace.")],
    version: VersionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new workspace that begins as another. Nothing is copied."""
    with client() as mags:
        reply = mags.fork_workspace(workspace, new, version=version)
    _tell(reply, as_json, f"{new} begins as {workspace}")


@app.command()
def export(
    workspace: NameArgument,
    file: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="`-` is standard output."),
    ] = None,
    form: Annotated[
        Literal["oci", "tar"],
        typer.Option("--format", help="An image that `podman load` takes, or all files."),
    ] = "oci",
    version: VersionOption = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace the file if it is there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a workspace with its image into an archive: an OCI image, or a tar of all files."""
    file = file or f"{workspace}.{'oci.tar' if form == 'oci' else 'tar'}"
    with (
        _written(file, force=force) as into,
        client() as mags,
        progress.moving(f"export {workspace}") as bar,
        mags.export_workspace(workspace, format=form, version=version) as found,
    ):
        bar.begin(found.size_bytes)
        digest, size_bytes = hashlib.sha256(), 0
        for piece in found.pieces:
            into.write(piece)
            digest.update(piece)
            size_bytes += len(piece)
            bar.advance(len(piece))
    if file == _STREAM:
        return
    if as_json:
        output.write_json({"file": file, "size_bytes": size_bytes, "sha256": digest.hexdigest()})
        return
    typer.echo(file)
    if form == "oci":
        output.note(f"{output.size(size_bytes)}; `podman load -i {file}` takes it")


@app.command("import")
def import_workspace(
    workspace: Annotated[
        str, typer.Argument(metavar="WORKSPACE", help="Name of the new workspace.")
    ],
    file: Annotated[str, typer.Argument(metavar="FILE", help="An archive; `-` is standard input.")],
    form: Annotated[
        Literal["auto", "oci", "tar"],
        typer.Option("--format", help="What the archive is, when it is not to be found out."),
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make a new workspace of an OCI image, of what `docker save` wrote, or of a tar of all files."""
    with _read(file) as source, client() as mags, progress.moving(f"import {workspace}") as bar:
        size_bytes = _size(source)
        bar.begin(size_bytes)
        pieces = _pieces(source, bar)
        reply = mags.import_workspace(workspace, pieces, size_bytes=size_bytes, format=form)
    shown = output.size(reply["size_bytes"])
    _tell(reply, as_json, f"{workspace} is there: {shown}, version {reply['version']}")


@app.command()
def delete(
    workspace: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a workspace with all its versions; what was forked from it stays."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {workspace} with all its versions?", abort=True, err=True)
    with client() as mags:
        reply = mags.delete_workspace(workspace)
    _tell(reply, as_json, f"{workspace} is deleted")


@app.command()
def gc(
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Versions to keep of each workspace (default: as the server does anyway)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Delete old versions, and layers that nothing needs, on the server now."""
    with client() as mags:
        reply = mags.collect_workspaces(keep=keep)
    freed = output.size(reply["freed_bytes"])
    _tell(
        reply,
        as_json,
        f"{reply['versions_deleted']} versions and {reply['layers_deleted']} layers deleted: "
        f"{freed}",
    )


def _tell(reply: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        output.write_json(reply)
    else:
        typer.echo(text)


@contextmanager
def _written(file: str, *, force: bool) -> Iterator[BinaryIO]:
    """Give a file that has its name when the block has ended well, and is gone otherwise."""
    if file == _STREAM:
        if sys.stdout.isatty():
            raise MagsError("an archive is not for a terminal: name a file with -o")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path, part = Path(file), Path(f"{file}.part")
    if path.exists() and not force:
        raise MagsError(f"{file} is there already: name another with -o, or use --force")
    try:
        with part.open("wb") as into:
            yield into
        part.replace(path)
    except OSError as error:
        raise MagsError(f"{error.filename or file} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def _read(file: str) -> Iterator[BinaryIO]:
    if file == _STREAM:
        if sys.stdin.isatty():
            raise MagsError("an archive does not come from a terminal: name a file")
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise MagsError(f"{file} cannot be read: {error.strerror}") from error
    with source:
        yield source


def _size(source: BinaryIO) -> int | None:
    return None if source is sys.stdin.buffer else os.fstat(source.fileno()).st_size or None


def _pieces(source: BinaryIO, bar: progress.Bar) -> Iterator[bytes]:
    while piece := source.read(_PIECE_BYTES):
        yield piece
        bar.advance(len(piece))
    bar.wait("the server unpacks it")
