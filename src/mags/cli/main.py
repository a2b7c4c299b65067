"""Entry point of `mags`: parses, makes one client call, prints.

Exit codes: the script's own for `run`; else 0 done, 1 refused or failed,
2 wrong usage, 3 not logged in, 4 not found, 5 server unreachable, 130 Ctrl-C.
"""

import sys
from typing import Annotated, Any

import typer

from mags import __version__
from mags.cli import access, live, output, workspaces
from mags.cli.exits import EXIT_NOT_FOUND, EXIT_NOT_LOGGED_IN, EXIT_REFUSED, EXIT_UNREACHABLE
from mags.cli.options import JsonOption, client
from mags.cli.run import run
from mags.cli.usage import usage
from mags.errors import MagsError

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


app.command()(run)


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
access.add_to(app)


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
