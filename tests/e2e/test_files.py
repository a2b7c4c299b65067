"""Uploads: handed in once, found by scripts in `/root` and `/uploads`, never held in memory."""

import hashlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pool_census import waiting_vms, wanted_vms
from tests.e2e.server import Server, eventually

pytestmark = pytest.mark.usefixtures("nothing_left")

_MOST = 100 << 20
_MORE_MEMORY = 24 << 20
"""What a daemon may take more while 100 MiB pass through it."""
_PIECE = bytes(range(256)) * 4096
_LOOK = """\
sha256sum < /root/{name} | cut -d' ' -f1
cmp /root/{name} /uploads/{name} && echo same
readlink /uploads/{name}
"""


def upload(server: Server, name: str, content: bytes | Iterator[bytes]) -> dict[str, Any]:
    with server.http() as client:
        reply = client.post("/mags-files", files={"file": (name, content)})
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


def status_of(server: Server, field: str) -> int:
    """Return a size that the host's kernel tells of the daemon, in bytes."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def forget_peak(server: Server) -> int:
    """Let `VmHWM` begin anew; return what the daemon has now."""
    assert server.process is not None
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    return status_of(server, "VmRSS")


class Large:
    """A file of 100 MiB that is made while it is read."""

    def __init__(self) -> None:
        self._left = _MOST
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = _PIECE[: min(self._left, len(_PIECE) if size < 0 else size)]
        self._left -= len(piece)
        self.digest.update(piece)
        return piece

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read():
            yield piece


def test_the_largest_file_passes_and_the_daemons_memory_stays_flat(server: Server) -> None:
    small = upload(server, "first", b"x")
    assert server.run("cat /root/first", file_ids=[small["file_id"]])["stdout"] == ["x"]
    before = forget_peak(server)
    large = Large()
    boundary = b"of-this-test"
    head = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n' % boundary

    def body() -> Iterator[bytes]:
        yield head
        yield from large
        yield b"\r\n--%b--\r\n" % boundary

    headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
    with server.http() as client:
        reply = client.post("/mags-files", content=body(), headers=headers)
    assert reply.status_code == 201, reply.text
    assert reply.json()["size"] == _MOST
    assert status_of(server, "VmHWM") - before < _MORE_MEMORY
    ids = [reply.json()["file_id"]]
    jobs = [server.submit(_LOOK.format(name="big"), file_ids=ids, memory_mb=256) for _ in range(3)]
    for job in jobs:
        status = server.final(job, 120)
        assert status["exit_code"] == 0, server.log_entries(job)
        assert server.stdout(job) == [large.digest.hexdigest(), "same", "/root/big"]
    assert status_of(server, "VmHWM") - before < _MORE_MEMORY
    assert not list((server.data / "tmp").iterdir())


def test_a_vm_that_waits_gets_them(server: Server) -> None:
    file = upload(server, "../../näh er", b"content\n")
    assert file["file_name"] == "näh er"
    eventually(lambda: len(waiting_vms(server)) >= wanted_vms(server), 60, "the pool is full")
    waiting = waiting_vms(server)
    done = server.run("cat '/uploads/näh er'; ls -A /uploads", file_ids=[file["file_id"]])
    assert done["stdout"] == ["content", "näh er"]
    assert done["vm_id"] in waiting


def test_a_workspace_keeps_the_file_and_not_the_folder_that_shows_it(server: Server) -> None:
    ids = [upload(server, "kept", b"content\n")["file_id"]]
    script = "cat /uploads/kept; echo more >> /root/kept; echo lost > /uploads/mine"
    first = server.run(script, workspace_id="with-files", file_ids=ids)
    assert (first["stdout"], first["workspace_synced"]) == (["content"], True)
    second = server.run("cat /root/kept; ls -A /uploads", workspace_id="with-files")
    assert second["stdout"] == ["content", "more"]
    # An upload takes the place of what has its name.
    third = server.run("cat /uploads/kept", workspace_id="with-files", file_ids=ids)
    assert third["stdout"] == ["content"]


def test_a_file_without_a_place_is_named(server: Server) -> None:
    ids = [upload(server, "taken", b"content\n")["file_id"]]
    made = server.run("mkdir /root/taken", workspace_id="taken")
    assert made["exit_code"] == 0
    failed = server.run("true", workspace_id="taken", file_ids=ids)
    assert (failed["status"], failed["code"]) == ("error", "launch_failed")
    assert "'taken'" in failed["error"]
    assert failed["exit_code"] is None


def test_too_large_a_file_is_refused_before_it_ends(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/api/v1/mags-files")
    connection.putheader("Authorization", f"Bearer {server.token}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()

    def send(data: bytes) -> None:
        connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    send(b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n')
    for _ in range(_MOST // len(_PIECE)):
        send(_PIECE)
    send(b"x" * 100_000)
    # More is announced, and never comes.
    reply = connection.getresponse()
    assert reply.status == 413
    assert b"100 MiB" in reply.read()
    connection.close()
    eventually(lambda: not list((server.data / "tmp").iterdir()), what="nothing is left of it")


def test_a_daemon_that_is_killed_on_the_way_begins_again(own_server: Server) -> None:
    content = _PIECE * 100
    ids = [upload(own_server, "big", content)["file_id"]]
    for _ in range(2):
        job = own_server.submit(_LOOK.format(name="big"), file_ids=ids)
        eventually(lambda: list((own_server.data / "tmp").iterdir()), what="the file is fetched")
        own_server.kill()
        own_server.start()
        assert own_server.final(job, 120)["exit_code"] == 0, own_server.log_entries(job)
        digest = hashlib.sha256(content).hexdigest()
        assert own_server.stdout(job) == [digest, "same", "/root/big"]
    assert not list((own_server.data / "tmp").iterdir())
