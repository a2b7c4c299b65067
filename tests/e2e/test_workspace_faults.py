"""Workspaces of scripts that do what is awkward or hostile, and of daemons that die meanwhile."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import Server, eventually

pytestmark = pytest.mark.usefixtures("nothing_left")

FILES = 100_000 if os.environ.get("MAGS_TEST_FULL") == "1" else 2_000
NAMES = [b"new\nline", b"\xff\xfe not utf-8", b"n" * 255, b" ", b"-rf", b"\\", "ä€".encode()]
HOLES = 10 << 30
PLACES = (0, HOLES // 2, HOLES - 3)
_FIRST = f"""
set -e
mkdir -p /srv/a/many /srv/a/folder && cd /srv/a
echo old > folder/old; echo a file > file
python3 - <<'END'
for number in range({FILES}):
    with open(f"many/{{number}}", "w") as file:
        file.write(str(number))
for name in {NAMES!r}:
    with open(name, "wb") as file:
        file.write(name)
with open("sparse", "wb") as file:
    file.truncate({HOLES})
    for at in {PLACES}:
        file.seek(at)
        file.write(b"abc")
END
"""
# What was a folder becomes a file, and the reverse; of an own layer and of the image's.
_SECOND = """
set -e
cd /srv/a
rm -r folder; echo now a file > folder; rm file; mkdir file; echo new > file/new
rm -r /usr/share/doc; echo a file > /usr/share/doc
rm /etc/debian_version; mkdir /etc/debian_version
"""
_LOOK = f"""
exec python3 - <<'END'
import os
os.chdir("/srv/a")
names = {NAMES!r}
print(sorted(os.listdir(b".")) == sorted([*names, b"many", b"folder", b"file", b"sparse"]))
print(all(open(name, "rb").read() == name for name in names))
many = range({FILES})
print(sorted(map(int, os.listdir("many"))) == list(many))
print(all(open(f"many/{{number}}").read() == str(number) for number in many))
with open("sparse", "rb") as file:
    print(os.fstat(file.fileno()).st_size, [(file.seek(at), file.read(4)) for at in {PLACES}])
for path in ("folder", "file", "/usr/share/doc", "/etc/debian_version"):
    print(os.listdir(path) if os.path.isdir(path) else open(path).read().strip())
END
"""


def test_awkward_files_come_back(server: Server) -> None:
    for script in (_FIRST, _SECOND):
        done = server.run(script, workspace_id="awkward", within_s=300)
        assert (done["status"], done["workspace_synced"]) == ("completed", True), done
    seen = server.run(_LOOK, workspace_id="awkward", within_s=300)
    held = [(at, b"abc\0"[: HOLES - at]) for at in PLACES]
    places = ["now a file", "['new']", "a file", "[]"]
    assert seen["stdout"] == ["True"] * 4 + [f"{HOLES} {held}", *places]


def test_what_a_layer_cannot_hold_is_left_out_and_the_rest_kept(server: Server) -> None:
    script = """
    cd /root; echo kept > kept; ln -s /../../../../etc/shadow out; ln -s loop loop
    mknod null c 1 3; mknod whiteout c 0 0; mknod disk b 8 0
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/root/socket")'
    mkdir deep; (cd deep; for n in $(seq 60); do mkdir d; cd d; done; echo deep > file)
    true
    """
    done = server.run(script, workspace_id="hostile")
    assert (done["status"], done["workspace_synced"]) == ("completed", True), done
    look = """
    cd /root; cat kept; readlink out loop; find deep -name file -exec cat {} +
    for name in null whiteout disk socket; do [ -e $name ] && echo $name; done; true
    """
    seen = server.run(look, workspace_id="hostile")
    assert seen["stdout"] == ["kept", "/../../../../etc/shadow", "loop", "deep"]


def test_a_full_disk_inside_is_an_error_there_and_what_was_written_is_kept(server: Server) -> None:
    script = """
    echo kept > /root/kept
    head -c 3G /dev/zero > /root/large && echo wrong
    rm /root/large; echo after > /root/after
    """
    done = server.run(script, workspace_id="full", disk_gb=1, within_s=200)
    assert (done["status"], done["workspace_synced"]) == ("completed", True), done
    assert done["stdout"] == []
    seen = server.run("cat /root/kept /root/after; ls /root", workspace_id="full")
    assert seen["stdout"] == ["kept", "after", "after", "kept"]


def test_a_daemon_killed_while_it_captures_leaves_nothing_held(own_server: Server) -> None:
    """The script goes on while there is no daemon, whenever that died."""
    script = "n=0; while :; do n=$((n+1)); echo $n; echo $n 1<> /root/n; sleep 0.02; done"
    job = own_server.submit(script, workspace_id="held")
    directory = own_server.data / "run" / own_server.running(job)["vm_id"]
    eventually(lambda: own_server.stdout(job), 30, "it prints")
    for number in range(4):
        asking = threading.Thread(target=_sync, args=(own_server, job))
        asking.start()
        time.sleep(0.05 + number * 0.06)  # What is tested: a crash at any moment.
        own_server.kill()
        asking.join()
        written = _written(directory)
        eventually(lambda written=written: _written(directory) != written, 10, "it goes on")
        own_server.start()
    with own_server.http() as http:
        assert http.post(f"/mags-jobs/{job}/sync").status_code == 200
        http.post(f"/mags-jobs/{job}/stop")
    assert own_server.final(job)["workspace_synced"] is True
    last = int(own_server.stdout(job)[-1])
    held = int(own_server.run("cat /root/n", workspace_id="held")["stdout"][0])
    assert last - held in (0, 1)


def _written(run_directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(run_directory.glob("journal.*")))


def _sync(server: Server, job: str) -> None:
    with suppress(httpx.TransportError), server.http() as http:  # The daemon is killed.
        http.post(f"/mags-jobs/{job}/sync")
