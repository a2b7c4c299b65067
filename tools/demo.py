"""`make demo`: start a server of its own, run a real script in a sandbox, show what it took, stop.

Everything lies in `.demo` and is removed at the end. Nothing of a server that
runs on this machine already is touched: folder, port and addresses are others.
"""

import fcntl
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magsd.engine.network import instance_of
from magsd.model.errors import MagsError
from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = REPOSITORY / ".venv/bin"
IMAGES = REPOSITORY / "build/images"
FOLDER = REPOSITORY / ".demo"
DATA = FOLDER / "data"
LOG = FOLDER / "magsd.log"
SLOT_NET = "198.19.254.0/24"
SCRIPT = 'uname -a; head -2 /etc/os-release; python3 -c "print(6*7)"; echo hello from $(hostname)'
READY_S = 60
STOP_S = 40
LEFT_S = 5
TAIL_LINES = 25
LINE_MAX = 300


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@contextmanager
def own_folder() -> Iterator[None]:
    """Hold `.demo` for this process alone."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo is running in {FOLDER}") from None
        yield


def add_image() -> None:
    """Give the server the image that set-up has built."""
    build_standard(ImageStore(DATA), IMAGES, False, lambda _: None)


def own_token() -> str:
    """Return the token of the demo's server, which outlives a demo that was killed."""
    path = FOLDER / "token"
    if not path.exists():
        path.write_text(f"mags_{secrets.token_hex(20)}")
        path.chmod(0o600)
    return path.read_text()


def free_port() -> int:
    """Return a port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(url: str, token: str) -> Iterator[None]:
    """Run `magsd serve` inside the block; return once a script can run."""
    settings = {
        "MAGSD_DATA_DIR": str(DATA),
        "MAGSD_API_BIND": url.removeprefix("http://"),
        "MAGSD_APPS_BIND": "127.0.0.1:0",
        "MAGSD_SSH_BIND": "127.0.0.1:0",
        "MAGSD_TOKEN": token,
        "MAGSD_SLOT_NET": SLOT_NET,
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAGS")}
    started = time.monotonic()
    with LOG.open("wb") as log:
        # If this process is killed the server ends too.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", BIN / "magsd", "serve"],
            env=environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(process, url, started)
        print(f"server    ready at {url} after {time.monotonic() - started:.1f} s", flush=True)
        yield
    finally:
        stop(process)


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str, started: float) -> None:
    """Return when the server says that a script can run; show what it waits for until then."""
    shown = ""
    while True:
        if process.poll() is not None:
            raise DemoError(f"`magsd serve` ended with exit code {process.returncode}")
        reason = unreadiness(url)
        if reason is None:
            return
        if time.monotonic() > started + READY_S:
            raise DemoError(f"the server is not ready after {READY_S} s: {reason}")
        if reason != shown:
            print(f"server    {reason} ...", flush=True)
            shown = reason
        time.sleep(0.05)


def unreadiness(url: str) -> str | None:
    """Return why no script can run yet, or None when one can."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return str(json.load(error).get("error", error))
    except OSError:
        return "starting"


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server as an operator would."""
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise DemoError(f"the server did not stop within {STOP_S} s") from None
    if code == 0:
        print(f"server    stopped after {time.monotonic() - started:.1f} s", flush=True)


def run_script(url: str, token: str) -> None:
    """Run the script with the real command; show its output, and where the time went."""
    environment = os.environ | {
        "MAGS_API_URL": url,
        "MAGS_API_TOKEN": token,
        "HOME": str(FOLDER),
    }
    name = f"demo-{secrets.token_hex(4)}"
    print(f"\n$ mags run {shlex.quote(SCRIPT)}", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        [BIN / "mags", "run", "--name", name, SCRIPT], env=environment, check=False
    )
    wall_ms = (time.monotonic() - started) * 1000
    if done.returncode != 0:
        raise DemoError(f"the script ended with exit code {done.returncode}")
    answer = subprocess.run(
        [BIN / "mags", "status", "--json", name],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    show_times(json.loads(answer.stdout), wall_ms)


def show_times(status: dict[str, object], wall_ms: float) -> None:
    """Print which engine ran the script, and how long each part took."""
    parts = [
        ("queue", status["queue_duration_ms"], "waiting for a turn"),
        ("acquire", status["acquire_duration_ms"], "making the sandbox"),
        ("script", status["script_duration_ms"], "running in it"),
        (
            "total",
            round(wall_ms),
            "as the person at the terminal sees it, start of `mags` included",
        ),
    ]
    print(f"\nengine    {status['engine']} ({status['isolation']})")
    for what, milliseconds, meaning in parts:
        print(f"{what:8}  {milliseconds:>5} ms  {meaning}")
    print(flush=True)


def left_over() -> list[str]:
    """Return a line for each thing of the demo's server that is still on this machine."""
    return [
        *_processes(),
        *_mounts(),
        *_loop_devices(),
        *_interfaces(),
        *_control_groups(),
        *_tables(),
    ]


def _processes() -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            arguments = (
                (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            )
            where = os.readlink(process / "cwd")
        except OSError:
            continue
        if str(DATA) in arguments or where.startswith(str(DATA)):
            yield f"process {process.name}: {arguments.strip()}"


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if str(DATA) in line:
            yield f"mount {line.split()[4]}"


def _loop_devices() -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = path.read_text()
        except OSError:
            continue
        if backing.startswith(str(DATA)):
            yield f"loop device {path.parts[3]} on {backing.strip()}"


def _interfaces() -> Iterator[str]:
    for interface in Path("/sys/class/net").glob(f"mags{instance_of(DATA)}-*"):
        yield f"network interface {interface.name}"


def _control_groups() -> Iterator[str]:
    for group in Path("/sys/fs/cgroup").glob(f"**/mags-{instance_of(DATA)}/*/"):
        yield f"control group {group}"


def _tables() -> Iterator[str]:
    shown = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    for line in shown.stdout.splitlines():
        if line.endswith(f" mags_{instance_of(DATA)}"):
            yield f"firewall {line}"


def check_nothing_is_left() -> None:
    """Wait until everything of the server is gone. Raises `DemoError` that names the rest."""
    deadline = time.monotonic() + LEFT_S
    while found := left_over():
        if time.monotonic() > deadline:
            raise DemoError("something is left on this machine:\n" + "\n".join(found))
        time.sleep(0.05)
    print(
        "left      nothing: no process, mount, loop device, interface, control group or rule",
        flush=True,
    )


def demo() -> None:
    """Do all of it."""
    if os.geteuid() != 0:
        raise DemoError("sandboxes need root: run it with sudo")
    with own_folder():
        url = f"http://127.0.0.1:{free_port()}"
        token = own_token()
        add_image()
        with serving(url, token):
            run_script(url, token)
        check_nothing_is_left()
    shutil.rmtree(FOLDER)


def main() -> int:
    """Run the demo; on failure say why, with the end of the server's log."""
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    try:
        demo()
    except KeyboardInterrupt:
        return 130
    except (DemoError, MagsError) as error:
        if LOG.exists():
            print(f"\nthe end of {LOG}:", file=sys.stderr)
            for line in LOG.read_text(errors="replace").splitlines()[-TAIL_LINES:]:
                print(f"  {line[:LINE_MAX]}", file=sys.stderr)
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
