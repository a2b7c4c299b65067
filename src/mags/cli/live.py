"""Commands for sandboxes that stay: make one, run a command in it, change its settings."""

import sys
from typing import Annotated

import typer

from mags.cli import output
from mags.cli.options import JsonOption, client

_JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id or name, or its workspace.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(new)
    # What follows the job is the command's, options included.
    app.command("exec", context_settings={"ignore_unknown_options": True})(execute)
    app.command("set")(change)
    app.command()(sync)
    app.command()(resize)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of its workspace.")],
    persistent: Annotated[
        bool, typer.Option("--persistent", "-p", help="Keep what changes in the workspace.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(metavar="WORKSPACE", help="Workspace to begin with.")
    ] = None,
    disk: Annotated[int | None, typer.Option(metavar="GB", help="Size of the disk.")] = None,
) -> None:
    """Make a sandbox that stays until it is stopped, and print its job's id."""
    with client() as mags:
        made = mags.new(
            name, persistent=persistent, base_workspace_id=base, disk_gb=disk, poll_interval=0.1
        )
    typer.echo(made["request_id"])
    output.note(f"`mags exec {name} COMMAND` runs a command in it, `mags stop {name}` ends it")


def execute(
    job: _JobArgument,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="For the shell there.")],
    timeout: Annotated[int, typer.Option(min=1, help="Seconds it may take.")] = 30,
) -> None:
    """Run a command in the sandbox of a job, and exit with its exit code; one that sleeps is woken.

    Words are joined by spaces and read by the shell there. Options of this
    program stand before JOB.
    """
    with client() as mags:
        done = mags.exec(job, " ".join(command), timeout=timeout)
    for stream, text in ((sys.stdout, done["output"]), (sys.stderr, done["stderr"])):
        # Bytes, so that no terminal encoding can refuse what a command printed.
        stream.buffer.write(text.encode("utf-8", "replace"))
        stream.flush()
    raise typer.Exit(done["exit_code"])


def change(
    job: _JobArgument,
    no_sleep: Annotated[
        bool | None, typer.Option("--no-sleep/--sleep", help="Whether it is never put to sleep.")
    ] = None,
    startup_command: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Run whenever it is started again after a sleep."),
    ] = None,
) -> None:
    """Change the settings of a job."""
    if no_sleep is None and startup_command is None:
        raise typer.BadParameter("say what to change: --no-sleep, --sleep or --startup-command")
    with client() as mags:
        reply = mags.update_job(job, no_sleep=no_sleep, startup_command=startup_command)
    typer.echo(reply.get("message", "updated"))


def sync(job: _JobArgument, as_json: JsonOption = False) -> None:
    """Keep what a job has changed so far in its workspace; the job goes on."""
    with client() as mags:
        kept = mags.sync(job)
    if as_json:
        output.write_json(kept)
    else:
        typer.echo(f"{kept['workspace_id']} is at version {kept['version']}")


def resize(
    workspace: Annotated[str, typer.Argument(metavar="WORKSPACE", help="Name of the sandbox.")],
    disk: Annotated[int, typer.Option(min=1, metavar="GB", help="Size of its new disk.")],
) -> None:
    """Give a workspace's sandbox a disk of another size: it is kept, stopped and made again."""
    with client() as mags:
        made = mags.resize(workspace, disk, poll_interval=0.1)
    typer.echo(made["request_id"])
