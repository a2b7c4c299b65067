"""SSH into sandboxes by stock OpenSSH, on every engine: shells, commands, files, tunnels."""

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.engines import ENGINES, serving_on
from tests.e2e.server import MAGS, Server, eventually, free_port

SETTINGS = {"MAGSD_MIN_IDLE_TIMEOUT_S": "1"}


@pytest.fixture(scope="module", params=ENGINES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One for each engine; nothing may be left of it in the end."""
    with serving_on(request.param, tmp_path_factory.mktemp("ssh"), **SETTINGS) as running:
        yield running


class Way:
    """A key for a job, and OpenSSH's programs that use it."""

    def __init__(self, server: Server, job: str, folder: Path) -> None:
        with server.http() as http:
            reply = http.post(f"/mags-jobs/{job}/access", json={"port": 22})
        assert reply.status_code == 200, reply.text
        self.told: dict[str, Any] = reply.json()
        self.folder = folder
        key = folder / "key"
        key.write_text(self.told["ssh_private_key"])
        key.chmod(0o600)
        config = folder / "config"
        config.write_text(
            "Host box\n"
            f"  HostName {self.told['ssh_host']}\n"
            f"  Port {self.told['ssh_port']}\n"
            "  User root\n"
            f"  IdentityFile {key}\n"
            "  IdentitiesOnly yes\n"
            "  IdentityAgent none\n"
            "  StrictHostKeyChecking accept-new\n"
            f"  UserKnownHostsFile {folder}/known\n"
            "  LogLevel ERROR\n"
        )
        self.options = ["-F", str(config)]

    def __call__(
        self, program: str, *arguments: str, stdin: bytes = b"", timeout: float = 90
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, *self.options, *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def printed(self, command: str) -> str:
        """Return what a command prints, which ends well."""
        done = self("ssh", "box", command)
        assert done.returncode == 0, done
        return done.stdout.decode()


@pytest.fixture
def job(server: Server) -> Iterator[str]:
    """A job that stays."""
    job = server.submit(
        "sleep infinity", persistent=True, no_sleep=True, environment={"OF_IT": "its own"}
    )
    server.running(job)
    yield job
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/stop")
    server.final(job)


@pytest.fixture
def way(server: Server, job: str, tmp_path: Path) -> Way:
    return Way(server, job, tmp_path)


def test_commands_end_as_they_end_and_read_what_they_are_given(way: Way) -> None:
    assert way.told["access_type"] == "ssh_proxy"
    data = os.urandom(3_000_000)
    done = way("ssh", "box", "sha256sum | cut -d' ' -f1; echo oops >&2; exit 7", stdin=data)
    assert done.returncode == 7
    assert done.stdout.decode().strip() == hashlib.sha256(data).hexdigest()
    assert done.stderr == b"oops\n"
    assert way.printed("echo $OF_IT; pwd; id -un") == "its own\n/root\nroot\n"
    assert way("ssh", "box", "kill -TERM $$").returncode == 255  # as OpenSSH tells of signals
    big = way("ssh", "box", "head -c 20000000 /dev/zero")
    assert len(big.stdout) == 20_000_000


def test_a_terminal(way: Way) -> None:
    done = way("ssh", "-tt", "box", "tty; echo $TERM; stty size")
    assert done.returncode == 0, done
    name, *rest = done.stdout.decode().replace("\r", "").splitlines()
    assert name.startswith("/dev/pts/")
    assert len(rest) == 2
    shell = way("ssh", "-tt", "box", stdin=b"echo in $((40 + 2)) words\nexit 3\n")
    assert shell.returncode == 3
    assert b"in 42 words" in shell.stdout


def test_files_by_scp_and_sftp(way: Way, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    data = os.urandom(2_000_000)
    (tree / "below/data").write_bytes(data)
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o755)
    done = way("scp", "-r", "-p", str(tree), "box:/root/copy")
    assert done.returncode == 0, done
    assert way.printed("stat -c %a copy/script; sha256sum < copy/below/data").split()[:2] == [
        "755",
        hashlib.sha256(data).hexdigest(),
    ]
    done = way("scp", "-r", "box:/root/copy", str(tmp_path / "back"))
    assert done.returncode == 0, done
    assert (tmp_path / "back/below/data").read_bytes() == data
    batch = b"mkdir /root/made\nput %b /root/made/it\nln -s it /root/made/link\nls -l /root/made\n"
    source = str(tree / "script").encode()
    done = way("sftp", "-b", "-", "box", stdin=batch % source)
    assert done.returncode == 0, done
    assert b"it" in done.stdout
    assert way.printed("readlink made/link; cat made/link") == "it\n#!/bin/sh\n"
    assert way("scp", "box:/no/such/file", str(tmp_path)).returncode == 1


def test_a_port_is_forwarded(way: Way) -> None:
    way.printed(
        "cd /srv && echo inside > index.html && "
        "(nohup python3 -m http.server -b 127.0.0.1 3000 >/dev/null 2>&1 &)"
    )
    port = free_port()
    tunnel = subprocess.Popen(
        ["ssh", *way.options, "-N", "-L", f"{port}:127.0.0.1:3000", "box"],
        stdin=subprocess.DEVNULL,
    )
    try:

        def page() -> str | None:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text
            except httpx.TransportError:
                return None

        assert eventually(page, 30, "the page comes by the tunnel") == "inside\n"
    finally:
        tunnel.terminate()
        tunnel.wait(30)


def test_a_key_opens_its_own_job_alone_and_no_longer_than_that_lives(
    server: Server, tmp_path: Path
) -> None:
    jobs = [server.submit("sleep infinity", persistent=True, name=name) for name in ("one", "two")]
    for each in jobs:
        server.running(each)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    ways = [Way(server, each, folder) for each, folder in zip(jobs, folders, strict=True)]
    names = [way.printed("hostname").strip() for way in ways]
    assert names == [f"mags-{server.status(each)['vm_id']}" for each in jobs]
    with subprocess.Popen(
        ["ssh", *ways[0].options, "box", "echo begun; sleep 1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"begun\n"
        for each in jobs:
            with server.http() as http:
                http.post(f"/mags-jobs/{each}/stop")
            server.final(each)
        assert session.wait(30) == 255
    refused = ways[0]("ssh", "box", "true")
    assert refused.returncode == 255
    assert b"Permission denied" in refused.stderr


def test_it_wakes_who_sleeps(server: Server, tmp_path: Path) -> None:
    job = server.submit("echo kept > /root/file", persistent=True, idle_timeout=1)
    server.running(job)
    way = Way(server, job, tmp_path)
    eventually(lambda: server.status(job)["sleeping"], 60, "it sleeps")
    assert way.printed("cat /root/file") == "kept\n"
    assert server.status(job)["status"] == "running"
    # A session that is open is use, whatever it does.
    with subprocess.Popen(
        ["ssh", *way.options, "box", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as session:
        eventually(lambda: way("ssh", "box", "pgrep -x cat").returncode == 0, 30, "it is open")
        time.sleep(4)
        assert server.status(job)["status"] == "running"
        session.kill()
    eventually(lambda: server.status(job)["sleeping"], 60, "it sleeps again")
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/stop")
    server.final(job)


def test_the_command_opens_a_shell(server: Server, job: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "MAGS_API_URL": server.url,
        "MAGS_API_TOKEN": server.token,
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [MAGS, "ssh", job, "echo $HOME; cat; exit 7"],
        env=environment,
        input="said to it\n",
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "/root\nsaid to it\n"), done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("mags")]
