"""Published clients: each version in an environment of its own, because it is called `mags` as ours."""

import fcntl
import hashlib
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from tests.e2e.server import REPOSITORY, Server

NEWEST = Path(__file__).with_name("published_client.txt")
"""The newest and all that any version needs."""
OLDER = Path(__file__).with_name("older_clients")


def interpreter(version: str | None = None) -> Path:
    """Return a Python that has a published client and nothing else; None: the newest."""
    wanted = [NEWEST] if version is None else [NEWEST, OLDER / f"{version}.txt"]
    content = b"".join(path.read_bytes() for path in wanted)
    key = hashlib.sha256(content + sys.version.encode()).hexdigest()[:16]
    folder = REPOSITORY / "build" / f"published-client-{key}"
    folder.parent.mkdir(exist_ok=True)
    python = folder / "bin/python"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            venv.create(folder, clear=True, with_pip=True, symlinks=True)
            install = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
            for path in wanted:
                subprocess.run([*install, "--disable-pip-version-check", "-r", path], check=True)
            (folder / "done").touch()
    return python


def call(python: Path, server: Server, code: str) -> Any:
    """Run Python code with the published client as `mags`; return what it gave to `show`."""
    program = (
        "import json, mags, sys\n"
        "from mags import Mags\n"
        "from mags.client import MagsError\n"
        "def show(value): print(json.dumps(value))\n"
        "mags = Mags(api_token=sys.argv[1], api_url=sys.argv[2])\n" + code
    )
    done = subprocess.run(
        [python, "-c", program, server.token, server.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{server.tail()}"
    return json.loads(done.stdout)
