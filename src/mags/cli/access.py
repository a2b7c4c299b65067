"""`mags url …` and `mags ssh`: ways into sandboxes."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from mags.cli import output
from mags.cli.options import JsonOption, client
from mags.errors import MagsError

_SSH_PORT: Final = 22
_SSH_OPTIONS: Final = (
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "PreferredAuthentications=publickey",
    # The server has one key for all sandboxes, and keeps it.
    "StrictHostKeyChecking=accept-new",
    "LogLevel=ERROR",
)
_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)
_OPEN: Final = "open"

_JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id or name, or its workspace.")
]


class _JobFirst(TyperGroup):
    """A group of commands that takes a job where a command could stand: `open` is meant then."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # type: ignore[explicit-override]
        """Put `open` before what is no command."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [_OPEN, *args]
        return super().parse_args(ctx, args)


url_app = typer.Typer(
    cls=_JobFirst,
    help="URLs of servers in sandboxes: `mags url JOB [PORT]`, `mags url alias …`.",
    no_args_is_help=True,
)
alias_app = typer.Typer(
    help="Names in URLs that follow a workspace, whichever job has it.", no_args_is_help=True
)
url_app.add_typer(alias_app, name="alias")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(url_app, name="url")
    # What follows the job is the command's, options included.
    app.command("ssh", context_settings={"ignore_unknown_options": True})(ssh)


@url_app.command(_OPEN)
def open_url(
    job: _JobArgument,
    port: Annotated[
        int, typer.Argument(metavar="PORT", min=1, max=65535, help="Where the server listens.")
    ] = 8080,
    as_json: JsonOption = False,
) -> None:
    """Let the URL of a job lead to a port in its sandbox, and print it. `open` may be left out."""
    if port == _SSH_PORT:
        raise MagsError(f"port 22 is for SSH: run `mags ssh {job}`")
    with client() as mags:
        reply = mags.url(job, port=port)
    _tell(reply, as_json, reply["url"])


@alias_app.command("create")
def create_alias(
    subdomain: Annotated[str, typer.Argument(metavar="NAME", help="First part of the URL.")],
    workspace: Annotated[str, typer.Argument(metavar="WORKSPACE", help="A workspace's name.")],
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Where the server listens (default: as its job's URL shows, else 8080).",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a URL that leads to whichever job has a workspace, and print it."""
    with client() as mags:
        reply = mags.url_alias_create(subdomain, workspace, port=port)
    _tell(reply, as_json, reply["url"])


@alias_app.command("list")
def list_aliases(as_json: JsonOption = False) -> None:
    """List aliases, the oldest first."""
    with client() as mags:
        reply = mags.url_alias_list()
    if as_json:
        output.write_json(reply)
        return
    rows = [
        [each["subdomain"], each["workspace_id"], str(each["port"]), each["url"]]
        for each in reply["aliases"]
    ]
    output.write_table(["NAME", "WORKSPACE", "PORT", "URL"], rows)


@alias_app.command("delete")
def delete_alias(
    subdomain: Annotated[str, typer.Argument(metavar="NAME", help="First part of the URL.")],
    as_json: JsonOption = False,
) -> None:
    """Delete an alias: its URL leads nowhere from then on."""
    with client() as mags:
        reply = mags.url_alias_delete(subdomain)
    _tell(reply, as_json, f"{subdomain} is deleted")


def ssh(
    job: _JobArgument,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="For the shell there; without it, a session."),
    ] = None,
) -> None:
    """Open a session in the sandbox of a persistent job, or run a command there, by OpenSSH.

    One that sleeps is woken. Options of this program stand before JOB; the
    exit code is the command's.
    """
    if (program := shutil.which("ssh")) is None:
        raise MagsError("there is no `ssh` here: install OpenSSH's client, or use `mags exec`")
    with client() as mags:
        access = mags.enable_access(job, port=_SSH_PORT)
    with _to_the_program(), tempfile.TemporaryDirectory(prefix="mags-ssh-") as folder:
        key = Path(folder) / "key"
        key.touch(mode=0o600)
        key.write_text(access["ssh_private_key"])
        code = _run([program, *_ssh_arguments(access, key), *(command or [])])
    raise typer.Exit(code)


def _ssh_arguments(access: dict[str, Any], key: Path) -> Iterator[str]:
    yield from ("-i", str(key), "-p", str(access["ssh_port"]))
    for each in _SSH_OPTIONS:
        yield from ("-o", each)
    # What follows the host is the command's, whatever it looks like.
    yield from ("--", f"root@{access['ssh_host']}")


def _run(argv: Sequence[str]) -> int:
    """Run a program to its end, or end it when this one is ended; return its exit code."""
    with subprocess.Popen(argv) as process:
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
    return code if code >= 0 else 128 - code


@contextmanager
def _to_the_program() -> Iterator[None]:
    """Leave Ctrl-C to the program that runs, and end it when this one is to end."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # Handlers, not SIG_IGN: a program that is started would inherit that.
    new: dict[signal.Signals, Any] = {signal.SIGINT: lambda *_: None}
    new |= dict.fromkeys(_ENDINGS, leave)
    before = {number: signal.signal(number, handler) for number, handler in new.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(reply: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        output.write_json(reply)
    else:
        typer.echo(text)
