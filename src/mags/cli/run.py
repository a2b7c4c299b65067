"""`mags run`: hand a script in, show what it prints, end as it ends."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

import typer

from mags.cli import output
from mags.cli.exits import EXIT_INTERRUPTED, EXIT_REFUSED
from mags.cli.options import client
from mags.errors import MagsError

_LOOK_S: Final = 0.1


def run(  # noqa: PLR0913 - an option each
    script: Annotated[
        str | None,
        typer.Argument(
            metavar="SCRIPT",
            help="Shell script; `-` reads it from standard input.",
            show_default=False,
        ),
    ] = None,
    script_file: Annotated[
        Path | None,
        typer.Option(
            "--script", exists=True, dir_okay=False, readable=True, help="Read it from this file."
        ),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Keep what it changes, under this name.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="WORKSPACE", help="Workspace to begin with.")
    ] = None,
    persistent: Annotated[
        bool, typer.Option("--persistent", "-p", help="The sandbox stays when the script is over.")
    ] = False,
    no_sleep: Annotated[
        bool, typer.Option("--no-sleep", help="With -p: it is never put to sleep.")
    ] = False,
    no_sync: Annotated[
        bool, typer.Option("--no-sync", help="Keep changes on the server's disk alone.")
    ] = False,
    startup_command: Annotated[
        str | None, typer.Option(help="With -p: run when it was woken anew.")
    ] = None,
    url: Annotated[
        bool, typer.Option("--url", help="With -p: publish a port of it, and print the URL.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="With --url: where the server inside listens.")
    ] = 8080,
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
    engine: Annotated[str | None, typer.Option(help="What runs it: gvisor or qemu.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the job's id and do not wait.")
    ] = False,
) -> None:
    """Run a script, show its output as it comes, and exit with its exit code.

    Ctrl-C stops the job; a second one leaves at once. A sandbox that stays (-p) is not waited for.
    """
    if url and not persistent:
        raise typer.BadParameter("only a sandbox that stays has a URL: add -p", param_hint="--url")
    environment = _environment(env or [])
    text = _script(script, script_file)
    file_ids = _uploaded(file or [])
    with client() as mags, _interrupts_held() as held:
        request_id = mags.run(
            text,
            name=name,
            workspace_id=workspace,
            base_workspace_id=base,
            persistent=persistent,
            no_sleep=no_sleep,
            no_sync=no_sync,
            startup_command=startup_command,
            environment=environment,
            file_ids=file_ids,
            script_timeout=timeout,
            disk_gb=disk,
            memory_mb=memory,
            vcpus=vcpus,
            rootfs_type=rootfs,
            engine=engine,
        )["request_id"]
        if detach or persistent:
            typer.echo(request_id)
            if url:
                typer.echo(_published(mags, request_id, port))
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


def _published(mags: Any, request_id: str, port: int) -> str:
    """Return the URL of a port in a sandbox, once there is one."""
    while (status := mags.status(request_id))["status"] == "pending":
        time.sleep(_LOOK_S)
    if status["status"] == "error":
        raise MagsError(status.get("error") or "the job has ended")
    return str(mags.url(request_id, port=port)["url"])


def _script(script: str | None, file: Path | None) -> str:
    if (script is None) == (file is None):
        raise typer.BadParameter("give either a script or --script FILE", param_hint="SCRIPT")
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise typer.BadParameter(f"{file} is not UTF-8", param_hint="--script") from None
    assert script is not None
    return sys.stdin.read() if script == "-" else script


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
