"""Ways into sandboxes: what the client and the commands send, and what they make of the replies."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from mags.errors import MagsError
from tests.unit.client.local_api import Reply

JOBS = "/api/v1/mags-jobs"
ALIASES = "/api/v1/mags-url-aliases"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nnot one\n-----END OPENSSH PRIVATE KEY-----\n"
SSH = {"ssh_host": "ssh.example", "ssh_port": 7022, "ssh_private_key": KEY}
URL = {"url": "http://0123.apps.localhost:7071", "subdomain": "0123", "port": 3000}


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program `ssh` first in the path: a shell script that a test gives."""

    def put(script):
        path = tmp_path / "bin" / "ssh"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)

    return put


def test_a_url_is_asked_for_by_name(api, mags):
    api.on("POST", f"{JOBS}/box/access", URL)
    assert mags.url("box") == URL
    assert mags.enable_access("box", port=22) == URL
    assert [request.body for request in api.requests] == [{"port": 8080}, {"port": 22}]


def test_aliases(api, mags):
    api.on("POST", ALIASES, Reply({"url": "u"}, 201))
    api.on("GET", ALIASES, {"aliases": [], "total": 0})
    api.on("DELETE", f"{ALIASES}/a%2Fb", {"success": True})
    assert mags.url_alias_create("name", "box") == {"url": "u"}
    mags.url_alias_create("name", "box", "ours.example", port=3000)
    assert mags.url_alias_list()["total"] == 0
    assert mags.url_alias_delete("a/b") == {"success": True}
    told = {"subdomain": "name", "workspace_id": "box", "domain": "apps.magpiecloud.com"}
    assert [request.body for request in api.requests[:2]] == [
        told,
        {**told, "domain": "ours.example", "port": 3000},
    ]


def test_what_the_server_refuses_is_told(api, mags):
    api.on("POST", f"{JOBS}/box/access", Reply({"error": "access needs a persistent job"}, 400))
    with pytest.raises(MagsError, match="persistent"):
        mags.url("box")


def test_the_url_is_all_that_is_printed(api, run):
    api.on("POST", f"{JOBS}/box/access", URL)
    assert run("url", "box", "3000") == (0, f"{URL['url']}\n".encode(), b"")
    assert run("url", "open", "box") == (0, f"{URL['url']}\n".encode(), b"")
    assert [request.body for request in api.requests] == [{"port": 3000}, {"port": 8080}]
    code, out, _ = run("url", "box", "--json")
    assert (code, b'"subdomain": "0123"' in out) == (0, True)
    code, _, err = run("url", "box", "22")
    assert (code, b"mags ssh box" in err) == (1, True)


def test_commands_of_aliases(api, run):
    shown = {"subdomain": "name", "workspace_id": "box", "port": 80, "url": "http://name.x"}
    api.on("POST", ALIASES, Reply(shown, 201))
    api.on("GET", ALIASES, {"aliases": [shown], "total": 1})
    api.on("DELETE", f"{ALIASES}/name", {"success": True})
    assert run("url", "alias", "create", "name", "box", "--port", "80")[1] == b"http://name.x\n"
    assert api.requests[0].body["port"] == 80
    assert run("url", "alias", "list")[1].split() == (
        b"NAME WORKSPACE PORT URL name box 80 http://name.x".split()
    )
    assert run("url", "alias", "delete", "name") == (0, b"name is deleted\n", b"")


def test_ssh_gets_a_key_that_is_gone_afterwards(api, run, program, tmp_path):
    api.on("POST", f"{JOBS}/box/access", SSH)
    program('for word; do echo "$word"; done; cp -p "$2" "$TMPDIR/seen"; stat -c %a "$2"; exit 42')
    code, out, err = run("ssh", "box", "ls", "-l", "a b")
    assert (code, err) == (42, b"")
    words = out.decode().splitlines()
    assert words[0] == "-i"
    assert words[2:4] == ["-p", "7022"]
    assert words[words.index("--") : -1] == ["--", "root@ssh.example", "ls", "-l", "a b"]
    assert "StrictHostKeyChecking=accept-new" in words
    assert words[-1] == "600"
    assert (tmp_path / "seen").read_text() == KEY
    assert not Path(words[1]).exists()
    assert not Path(words[1]).parent.exists()
    assert api.requests[0].body == {"port": 22}


def test_the_real_ssh_takes_these_words(api, run, program, monkeypatch):
    """What it would do, with all of its settings, it prints by `-G`."""
    api.on("POST", f"{JOBS}/box/access", SSH)
    program('PATH="${PATH#*:}"; exec ssh -G "$@"')
    code, out, err = run("ssh", "box", "-G", "ls")
    assert (code, err) == (0, b"")
    told = out.decode().splitlines()
    assert {"user root", "hostname ssh.example", "port 7022", "identitiesonly yes"} <= set(told)


def test_without_ssh_it_says_so(api, run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run("ssh", "box")
    assert (code, b"OpenSSH" in err) == (1, True)
    assert api.requests == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 7)])
def test_a_signal_leaves_no_key_behind(api, environment, program, tmp_path, number, code):
    """One that ends the command ends the session; Ctrl-C is the session's affair."""
    api.on("POST", f"{JOBS}/box/access", SSH)
    (tmp_path / "began").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "began")
    program('trap "exit 7" INT; echo > "$TMPDIR/began"; while :; do sleep 0.05; done')
    mags = subprocess.Popen(
        [Path(sys.executable).with_name("mags"), "ssh", "box"], start_new_session=True
    )
    # A watchdog: a command that does not begin would keep the test waiting.
    watchdog = threading.Timer(20, mags.kill)
    watchdog.start()
    try:
        (tmp_path / "began").read_text()
        assert list(tmp_path.glob("mags-ssh-*/key"))
        # A terminal's Ctrl-C reaches all of the group.
        (os.killpg if number is signal.SIGINT else os.kill)(mags.pid, number)
        assert mags.wait(timeout=20) == code
    finally:
        watchdog.cancel()
        with suppress(ProcessLookupError):
            os.killpg(mags.pid, signal.SIGKILL)
        mags.wait()
    assert not list(tmp_path.glob("mags-ssh-*"))
