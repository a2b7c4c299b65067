"""Entry point of `mags`: parses, makes one client call, prints.

Exit codes: the script's own for `run`; else 0 done, 1 refused or failed,
2 wrong usage, 3 not logged in, 4 not found, 5 server unreachable, 130 Ctrl-C.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from mags import __version__
from mags.cli import live, output, workspaces
from mags.cli.options import JsonOption, client
from mags.cli.usage import usage
from mags.errors import MagsError

EXIT_REFUSED = 1
EXIT_NOT_LOGGED_IN = 3
EXIT_NOT_FOUND = 4
EXIT_UNREACHABLE = 5
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Run scripts in sandboxes that have a kernel of their own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(workspaces.app, name="workspace")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id or name.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mags {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def run(
    script: Annotated[
        str,
        typer.Argument(metavar="SCRIPT", help="Shell script; `-` reads it from standard input."),
    ],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the job.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="Repeatable.")
    ] = None,
    timeout: Annotated[
        int | None, typer.Option(help="Seconds the script may take (the server's default: 300).")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            exists=True,
            dir_okay=False,
            readable=True,
            help="A file to upload, for the script in /root and /uploads. Repeatable.",
        ),
    ] = None,
    disk: Annotated[int | None, typer.Option(metavar="GB", help="Size of the disk.")] = None,
    memory: Annotated[int | None, typer.Option(metavar="MB", help="Memory.")] = None,
    vcpus: Annotated[int | None, typer.Option(help="Virtual processors.")] = None,
    rootfs: Annotated[str | None, typer.Option(help="Image to start from.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the job's id and do not wait.")
    ] = False,
) -> None:
    """Run a script, show its output as it comes, and exit with its exit code.

    Ctrl-C stops the job; a second one leaves at once.
    """
    environment = _environment(env or [])
    text = sys.stdin.read() if script == "-" else script
    file_ids = _uploaded(file or [])
    with client() as mags, _interrupts_held() as held:
        request_id = mags.run(
            text,
            name=name,
            environment=environment,
            file_ids=file_ids,
            script_timeout=timeout,
            disk_gb=disk,
            memory_mb=memory,
            vcpus=vcpus,
            rootfs_type=rootfs,
        )["request_id"]
        if detach:
            typer.echo(request_id)
            output.note(f"`mags logs -f {request_id}` follows it, `mags stop {request_id}` ends it")
            return
        try:
            held.release()
            status, told = _follow_to_the_end(mags, request_id)
        except KeyboardInterrupt:
            _stop_interrupted(mags, request_id)
            raise typer.Exit(EXIT_INTERRUPTED) from None
    if status["status"] == "error" and status.get("error") not in (None, told):
        output.failure(status["error"])
    exit_code = status.get("exit_code")
    raise typer.Exit(EXIT_REFUSED if exit_code is None else exit_code)


def _uploaded(files: list[Path]) -> list[str]:
    """Upload files before there is a job, so that Ctrl-C simply ends it."""
    if not files:
        return []
    with client() as mags:
        return list(mags.upload_files(files))


class _Held:
    """A Ctrl-C that came while nobody could act on it; the second one acts in any case."""

    def __init__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._hold)
        self._has_come = False

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._has_come:
            raise KeyboardInterrupt
        self._has_come = True

    def release(self) -> None:
        """Let interrupts through again, the one that came first."""
        signal.signal(signal.SIGINT, self._before)
        if self._has_come:
            self._has_come = False
            raise KeyboardInterrupt


@contextmanager
def _interrupts_held() -> Iterator[_Held]:
    """Hold Ctrl-C back while a job is handed in: without its id it could not be stopped."""
    held = _Held()
    try:
        yield held
    finally:
        held.release()


def _follow_to_the_end(mags: Any, request_id: str) -> tuple[dict[str, Any], str | None]:
    """Show a job's log; return its final status and the last that the system said in the log."""
    told = None
    for entry in mags.follow_logs(request_id):
        output.write_log_entry(entry)
        if entry["source"] == "system":
            told = entry["message"]
    return mags.wait(request_id), told


def _stop_interrupted(mags: Any, request_id: str) -> None:
    output.note(f"stopping job {request_id}; Ctrl-C again leaves it to the server")
    try:
        status = mags.stop(request_id).get("status")
    except KeyboardInterrupt:
        output.note(f"left; `mags status {request_id}` shows what became of it")
        return
    if status == "stopping":
        output.note(f"job {request_id} is still being stopped")
    else:
        output.note(f"job {request_id} is stopped")


def _environment(pairs: list[str]) -> dict[str, str]:
    environment = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--env")
        environment[key] = value
    return environment


@app.command()
def status(job: JobArgument, as_json: JsonOption = False) -> None:
    """Show a job: its status, exit code, engine and times."""
    with client() as mags:
        reply = mags.status(job)
    if as_json:
        output.write_json(reply)
    else:
        output.write_pairs(reply)


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new lines as they come, to the job's end.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a job printed: its stdout on stdout, the rest on stderr."""
    with client() as mags:
        if follow:
            for entry in mags.follow_logs(job):
                output.write_log_entry(entry)
            return
        reply = mags.logs(job)
    if as_json:
        output.write_json(reply)
        return
    if reply.get("truncated"):
        output.note("only the newest lines are shown")
    for entry in reply["logs"]:
        output.write_log_entry(entry)


@app.command("list")
def list_jobs(
    page: Annotated[int, typer.Option(min=1)] = 1,
    page_size: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with client() as mags:
        reply = mags.list_jobs(page=page, page_size=page_size)
    if as_json:
        output.write_json(reply)
        return
    rows = [
        [job["request_id"], job["name"], job["status"], _exit_shown(job), job["created_at"]]
        for job in reply["jobs"]
    ]
    output.write_table(["ID", "NAME", "STATUS", "EXIT", "CREATED"], rows)
    shown = (page - 1) * page_size + len(reply["jobs"])
    if shown < reply["total"]:
        output.note(f"{shown} of {reply['total']}; --page {page + 1} shows more")


def _exit_shown(job: dict[str, Any]) -> str:
    if job["status"] not in ("completed", "error") or job.get("exit_code") is None:
        return ""
    return str(job["exit_code"])


@app.command()
def stop(job: JobArgument, as_json: JsonOption = False) -> None:
    """Stop a job."""
    with client() as mags:
        reply = mags.stop(job)
    if as_json:
        output.write_json(reply)
    else:
        typer.echo(reply.get("message") or reply.get("status", "stopped"))


@app.command()
def login(
    token: Annotated[
        str | None, typer.Option(help="API token; asked for when left out.", show_default=False)
    ] = None,
    api_url: Annotated[
        str | None, typer.Option("--url", help="Address of the server.", show_default=False)
    ] = None,
) -> None:
    """Check a token and save it with the server's address, for this user alone.

    Without a terminal the token is read from standard input.
    """
    from mags import config
    from mags.client import Mags

    configuration = config.load(api_url, token)
    if token is None:
        token = _ask_for_token(configuration.api_url)
    with Mags(token, configuration.api_url) as mags:
        identity = mags.whoami()
    path = config.save(config.Configuration(configuration.api_url, token))
    output.note(f"logged in to {configuration.api_url} as {identity['account']}; saved in {path}")
    used = config.load()
    if used.api_token != token:
        output.note("but MAGS_API_TOKEN or MAGS_TOKEN is set, and wins over the saved token")
    if used.api_url != configuration.api_url:
        output.note("but MAGS_API_URL is set, and wins over the saved address")


def _ask_for_token(api_url: str) -> str:
    if sys.stdin.isatty():
        answer = typer.prompt(f"API token for {api_url}", hide_input=True, err=True)
    else:
        answer = sys.stdin.readline()
    if not (token := str(answer).strip()):
        raise MagsError("no token given", code="unauthorized")
    return token


@app.command()
def logout() -> None:
    """Forget the saved token and address."""
    from mags import config

    path = config.forget()
    output.note(f"removed {path}" if path else "nothing is saved")


@app.command()
def whoami(as_json: JsonOption = False) -> None:
    """Show whose token is in use, and on which server."""
    with client() as mags:
        reply = mags.whoami() | {"api_url": mags.api_url}
    if as_json:
        output.write_json(reply)
    else:
        output.write_pairs(reply | {"scopes": " ".join(reply.get("scopes", []))})


app.command()(usage)
live.add_to(app)


def _exit_code(error: MagsError) -> int:
    if error.status_code is None and error.code == "unreachable":
        return EXIT_UNREACHABLE
    if error.status_code == 401 or error.code == "unauthorized":
        return EXIT_NOT_LOGGED_IN
    if error.status_code == 404 or error.code == "not_found":
        return EXIT_NOT_FOUND
    return EXIT_REFUSED


def main() -> None:
    """Run the command; every expected failure is one line and an exit code."""
    try:
        app(prog_name="mags")
    except MagsError as error:
        output.failure(str(error))
        sys.exit(_exit_code(error))
