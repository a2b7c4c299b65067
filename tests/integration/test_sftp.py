"""The agent's SFTP server: OpenSSH's clients talk to it, and somebody who sends what is none."""

import os
import struct
import subprocess

import pytest

from magsd.guest.sftp import sftp
from tests.integration.shim_process import AGENT, ShimProcess

BIG = os.urandom(1 << 16) * 40 + b"and a bit"
INIT, OPEN, CLOSE, READ, WRITE, FSTAT, SETSTAT, OPENDIR, READDIR = 1, 3, 4, 5, 6, 8, 9, 11, 12
MKDIR, REALPATH, STAT, RENAME, SYMLINK, EXTENDED = 14, 16, 17, 18, 20, 200
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY = 101, 102, 103, 104, 105, 201
OK, EOF, NO_SUCH_FILE, FAILURE, BAD_MESSAGE, UNSUPPORTED = 0, 1, 2, 4, 5, 8
NO_ATTRIBUTES = bytes(4)


def u32(number):
    return struct.pack(">I", number)


def u64(number):
    return struct.pack(">Q", number)


def string(data):
    data = data.encode() if isinstance(data, str) else data
    return u32(len(data)) + data


def packet(kind, body):
    return string(bytes([kind]) + body)


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    return home


class Server:
    """The server on pipes, and a client that asks one thing after the other."""

    def __init__(self, home):
        self.process = subprocess.Popen(
            [AGENT, "sftp", home], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._id = 0

    def __enter__(self):
        self.send(packet(INIT, u32(3)))
        self.version = self.receive()
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        self.code = self.process.wait(20)

    def send(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def receive(self):
        size = struct.unpack(">I", self.process.stdout.read(4))[0]
        content = self.process.stdout.read(size)
        return content[0], content[1:]

    def post(self, kind, *parts):
        self._id += 1
        self.send(packet(kind, u32(self._id) + b"".join(parts)))
        return self._id

    def ask(self, kind, *parts):
        number = self.post(kind, *parts)
        kind, body = self.receive()
        assert body[:4] == u32(number)
        return kind, body[4:]

    def status(self, kind, *parts):
        kind, body = self.ask(kind, *parts)
        assert kind == STATUS
        return struct.unpack(">I", body[:4])[0]

    def handle(self, kind, *parts):
        kind, body = self.ask(kind, *parts)
        assert kind == HANDLE
        return body


@pytest.fixture
def server(home):
    with Server(home) as server:
        yield server


def batch(home, commands):
    """Run OpenSSH's client; return what it printed."""
    done = subprocess.run(
        ["sftp", "-q", "-b", "-", "-D", f"{AGENT} sftp {home}"],
        input=commands,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- OpenSSH's clients ---------------------------------------------------------------


def test_openssh_puts_and_gets(home, tmp_path):
    (tmp_path / "big").write_bytes(BIG)
    (tmp_path / "big").chmod(0o750)
    batch(home, f"put -p {tmp_path}/big there\nget -p there {tmp_path}/back\n")
    assert (home / "there").read_bytes() == (tmp_path / "back").read_bytes() == BIG
    for path in (home / "there", tmp_path / "back"):
        assert path.stat().st_mode & 0o777 == 0o750
        assert int(path.stat().st_mtime) == int((tmp_path / "big").stat().st_mtime)


def test_openssh_puts_and_gets_folders(home, tmp_path):
    (tmp_path / "tree/deep").mkdir(parents=True)
    for number in range(250):
        (tmp_path / f"tree/deep/{number}").write_text(str(number))
    batch(home, f"put -r {tmp_path}/tree\nget -r tree {tmp_path}/again\n")
    names = {str(number) for number in range(250)}
    assert {path.name for path in (home / "tree/deep").iterdir()} == names
    assert {path.read_text() for path in (tmp_path / "again/deep").iterdir()} == names


def test_openssh_changes_what_is_there(home):
    (home / "file").write_text("content")
    batch(
        home,
        "mkdir folder\nrename file folder/moved\nln -s folder/moved soft\nln folder/moved hard\n"
        "chmod 600 hard\nmkdir empty\nrmdir empty\ncd folder\nlcd /\nrm moved\n",
    )
    assert sorted(path.name for path in home.iterdir()) == ["folder", "hard", "soft"]
    assert (home / "hard").stat().st_mode & 0o777 == 0o600
    assert os.readlink(home / "soft") == "folder/moved"
    assert list((home / "folder").iterdir()) == []


def test_openssh_lists(home):
    (home / "folder").mkdir()
    (home / "file").write_bytes(b"12345")
    (home / "link").symlink_to("file")
    lines = batch(home, "ls -la\n").splitlines()[1:]
    modes = {line.split()[-1]: line.split()[0] for line in lines}
    assert modes["file"] == "-rw-r--r--"
    assert modes["folder"].startswith("d")
    assert modes["link"].startswith("l")
    assert {".", ".."} < set(modes)
    assert next(line for line in lines if line.endswith(" file")).split()[2:5] == [
        "root",
        "root",
        "5",
    ]
    assert "Avail" in batch(home, "df\n")
    assert batch(home, "pwd\n").splitlines()[-1].endswith(str(home))


def test_openssh_goes_on_where_it_stopped(home, tmp_path):
    (home / "file").write_bytes(BIG)
    (tmp_path / "part").write_bytes(BIG[:100_000])
    batch(home, f"reget file {tmp_path}/part\n")
    assert (tmp_path / "part").read_bytes() == BIG


def test_scp(home, tmp_path):
    (tmp_path / "big").write_bytes(BIG)
    (tmp_path / "ssh").write_text(f"#!/bin/sh\nexec {AGENT} sftp {home}\n")
    (tmp_path / "ssh").chmod(0o700)
    command = ["scp", "-q", "-s", "-S", tmp_path / "ssh"]
    subprocess.run([*command, tmp_path / "big", "host:copy"], check=True, timeout=60)
    subprocess.run([*command, "host:~/copy", tmp_path / "back"], check=True, timeout=60)
    assert (home / "copy").read_bytes() == (tmp_path / "back").read_bytes() == BIG


# --- packets --------------------------------------------------------------------------


def test_the_version_names_what_there_is_beside(server):
    kind, body = server.version
    assert (kind, body[:4]) == (2, u32(3))
    for name in ("posix-rename", "statvfs", "hardlink", "fsync", "limits"):
        assert string(f"{name}@openssh.com") in body


def test_requests_are_pipelined(server, home):
    (home / "file").write_bytes(BIG)
    handle = server.handle(OPEN, string("file"), u32(1), NO_ATTRIBUTES)
    sizes = [1, 100, 32768, 100_000, 262_144, 1 << 30]
    for number in range(60):
        server.post(READ, handle, u64(number * 1000), u32(sizes[number % 6]))
    for number in range(60):
        kind, body = server.receive()
        size = min(sizes[number % 6], 262_144)
        assert kind == DATA
        assert body[4:] == string(BIG[number * 1000 : number * 1000 + size])
    assert server.status(READ, handle, u64(1 << 40), u32(100)) == EOF
    assert server.status(CLOSE, handle) == OK
    assert server.status(CLOSE, handle) == FAILURE


def test_a_write_of_the_largest_size(server, home):
    handle = server.handle(OPEN, string("file"), u32(2 | 8), u32(4), u32(0o640))
    assert server.status(WRITE, handle, u64(5), string(BIG[:262_144])) == OK
    assert server.status(EXTENDED, string("fsync@openssh.com"), handle) == OK
    assert (home / "file").read_bytes() == bytes(5) + BIG[:262_144]
    assert (home / "file").stat().st_mode & 0o777 == 0o640
    kind, body = server.ask(FSTAT, handle)
    assert (kind, body[:12]) == (ATTRS, u32(15) + u64(262_149))
    assert server.status(SETSTAT, string("file"), u32(1), u64(3)) == OK
    assert (home / "file").read_bytes() == bytes(3)


def test_what_is_appended(server, home):
    (home / "file").write_bytes(b"abc")
    handle = server.handle(OPEN, string("file"), u32(2 | 4), NO_ATTRIBUTES)
    assert server.status(WRITE, handle, u64(0), string("def")) == OK
    assert (home / "file").read_bytes() == b"abcdef"


def test_a_rename_replaces_nothing_but_a_posix_one_does(server, home):
    (home / "a").write_text("a")
    (home / "b").write_text("b")
    assert server.status(RENAME, string("a"), string("b")) == FAILURE
    assert (home / "b").read_text() == "b"
    assert (
        server.status(EXTENDED, string("posix-rename@openssh.com"), string("a"), string("b")) == 0
    )
    assert (home / "b").read_text() == "a"


def test_paths_are_resolved(server, home):
    def resolved(path, *before):
        kind, body = server.ask(EXTENDED if before else REALPATH, *before, string(path))
        assert (kind, body[:4]) == (NAME, u32(1))
        return body[8 : 8 + struct.unpack(">I", body[4:8])[0]].decode()

    (home / "folder").mkdir()
    (home / "link").symlink_to("folder")
    assert resolved("") == resolved(".") == str(home)
    assert resolved("link/../link/new") == f"{home}/folder/new"
    assert resolved("/usr/..") == "/"
    assert resolved("/new") == "/new"
    assert server.status(REALPATH, string("none/new")) == NO_SUCH_FILE
    expand = string("expand-path@openssh.com")
    assert resolved("~/folder", expand) == f"{home}/folder"
    assert server.status(EXTENDED, expand, string("~other/x")) == NO_SUCH_FILE


def test_a_link_says_what_its_first_path_says(server, home):
    assert server.status(SYMLINK, string("what it says"), string("link")) == OK
    assert os.readlink(home / "link") == "what it says"


def test_limits(server):
    kind, body = server.ask(EXTENDED, string("limits@openssh.com"))
    assert (kind, body[8:24]) == (EXTENDED_REPLY, u64(262_144) * 2)


def test_no_more_than_so_many_are_open(server, home):
    (home / "file").write_text("x")
    handles = [server.handle(OPEN, string("file"), u32(1), NO_ATTRIBUTES) for _ in range(1024)]
    assert len(set(handles)) == 1024
    assert server.status(OPEN, string("file"), u32(1), NO_ATTRIBUTES) == FAILURE
    assert server.status(OPENDIR, string(".")) == FAILURE
    assert server.status(CLOSE, handles[500]) == OK
    assert server.handle(OPENDIR, string("."))


def test_kinds_of_files_do_not_mix(server, home):
    (home / "file").write_text("x")
    file = server.handle(OPEN, string("file"), u32(1), NO_ATTRIBUTES)
    folder = server.handle(OPENDIR, string("."))
    assert server.status(READDIR, file) == FAILURE
    assert server.status(READ, folder, u64(0), u32(10)) == FAILURE
    assert server.status(OPENDIR, string("file")) == NO_SUCH_FILE
    assert server.status(READ, string("\0" * 4), u64(0), u32(1)) == BAD_MESSAGE
    assert server.status(READ, string("ffffffff"), u64(0), u32(1)) == FAILURE


@pytest.mark.parametrize(
    ("kind", "parts", "code"),
    [
        (MKDIR, [], BAD_MESSAGE),
        (MKDIR, [u32(1 << 31), b"x"], BAD_MESSAGE),
        (MKDIR, [string("a\0b"), NO_ATTRIBUTES], BAD_MESSAGE),
        (MKDIR, [string("a" * 5000), NO_ATTRIBUTES], BAD_MESSAGE),
        (MKDIR, [string("a"), u32(0xFFFFFFFF)], BAD_MESSAGE),
        (MKDIR, [string("a"), u32(1 << 31), u32(0xFFFFFFFF)], BAD_MESSAGE),
        (OPEN, [string("a"), u32(1)], BAD_MESSAGE),
        (STAT, [string("")], NO_SUCH_FILE),
        (EXTENDED, [string("none@example.org")], UNSUPPORTED),
        (EXTENDED, [], BAD_MESSAGE),
        (0, [], UNSUPPORTED),
        (99, [], UNSUPPORTED),
        (255, [b"x" * 1000], UNSUPPORTED),
    ],
)
def test_requests_that_are_none(server, home, kind, parts, code):
    assert server.status(kind, *parts) == code
    assert list(home.iterdir()) == []
    assert server.ask(STAT, string("."))[0] == ATTRS


@pytest.mark.parametrize("data", [u32(0), u32(0xFFFFFFFF) + b"x", u32(300_000), u32(4)])
def test_what_is_no_packet_ends_it(home, data):
    with Server(home) as server:
        server.send(data + bytes(10))
        assert server.process.stdout.read() == b""
    assert server.code == 1


def test_who_does_not_begin_is_not_served(home):
    server = Server(home)
    server.send(packet(STAT, u32(1) + string(".")))
    assert server.process.stdout.read() == b""
    server.__exit__()
    assert server.code == 1


# --- in a VM --------------------------------------------------------------------------


async def test_as_a_stream(tmp_path):
    async with (
        await ShimProcess.open(tmp_path) as shim,
        await sftp(await shim.connect()) as stream,
    ):
        (tmp_path / "big").write_bytes(BIG)
        path = string(str(tmp_path / "big"))
        await stream.write(packet(INIT, u32(3)) + packet(OPEN, u32(1) + path + u32(1) + u32(0)))
        for number in range(10):
            body = u32(number) + string("00000000") + u64(number << 18) + u32(1 << 18)
            await stream.write(packet(READ, body))
        await stream.write_eof()
        content = bytearray()
        while data := await stream.read():
            content += data
        assert content.endswith(BIG[9 << 18 : 10 << 18])
        assert (await stream.exit()).value == 0
