"""The agent's stream `capture`: a folder as a PAX archive, read back by Python's `tarfile`."""

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from magsd.guest.wire import Kind
from tests.integration.agent_process import AgentProcess, FarStream, pack

BLOCK = 512
WIDE_ID = 3_000_000_000
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture
def agent() -> Iterator[AgentProcess]:
    with AgentProcess() as agent:
        agent.join()
        yield agent


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    path = tmp_path / "upper"
    path.mkdir(mode=0o755)
    return path


def captured(agent: AgentProcess, path: Path | str) -> FarStream:
    return agent.ended(agent.open(pack("capture", b"path=" + os.fsencode(path))))


def archive(agent: AgentProcess, path: Path) -> bytes:
    stream = captured(agent, path)
    assert stream.end
    assert stream.end.value == 0, stream.end
    assert len(stream.out) % BLOCK == 0
    return stream.out


def members(content: bytes) -> dict[str, tarfile.TarInfo]:
    """The entries of an archive, read as a stream."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|") as tar:
        return {member.name: member for member in tar}


def content_of(content: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        file = tar.extractfile(name)
        assert file
        return file.read()


def test_files_folders_and_links(agent: AgentProcess, upper: Path) -> None:
    (upper / "etc").mkdir(mode=0o700)
    (upper / "etc/file").write_bytes(b"content")
    os.chown(upper / "etc/file", 12, 34)
    os.chmod(upper / "etc/file", 0o4711)
    os.utime(upper / "etc/file", (1, 1_600_000_000))
    os.link(upper / "etc/file", upper / "etc/same")
    os.symlink("../no where\n", upper / "link")
    os.mkfifo(upper / "fifo", 0o640)
    content = archive(agent, upper)
    found = members(content)
    # In the order of their names, each folder before what lies in it.
    assert list(found) == [".", "./etc", "./etc/file", "./etc/same", "./fifo", "./link"]
    assert found["."].isdir()
    assert (found["./etc"].type, found["./etc"].mode) == (tarfile.DIRTYPE, 0o700)
    file = found["./etc/file"]
    assert (file.mode, file.uid, file.gid, file.mtime) == (0o4711, 12, 34, 1_600_000_000)
    assert content_of(content, "./etc/file") == b"content"
    assert (found["./etc/same"].islnk(), found["./etc/same"].linkname) == (True, "./etc/file")
    assert (found["./link"].issym(), found["./link"].linkname) == (True, "../no where\n")
    assert (found["./fifo"].isfifo(), found["./fifo"].mode) == (True, 0o640)


def test_what_an_overlay_leaves(agent: AgentProcess, upper: Path) -> None:
    os.mknod(upper / "deleted", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(upper / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (upper / "replaced").mkdir()
    os.setxattr(upper / "replaced", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "replaced", "trusted.overlay.origin", b"\0handle")
    found = members(archive(agent, upper))
    for name in ("./deleted", "./device"):
        whiteout = found[name]
        assert (whiteout.ischr(), whiteout.devmajor, whiteout.devminor) == (True, 0, 0)
    records = found["./replaced"].pax_headers
    assert records == {"SCHILY.xattr.trusted.overlay.opaque": "y"}


def test_attributes_that_a_layer_may_hold(agent: AgentProcess, upper: Path) -> None:
    file = upper / "file"
    file.touch()
    os.setxattr(file, "user.mine", b"a\0b=\n\xff")
    os.setxattr(file, "security.capability", CAPABILITY)
    os.setxattr(file, "trusted.other", b"no")
    records = members(archive(agent, upper))["./file"].pax_headers
    assert {key: os.fsencode(value) for key, value in records.items()} == {
        "SCHILY.xattr.user.mine": b"a\0b=\n\xff",
        "SCHILY.xattr.security.capability": CAPABILITY,
    }


@pytest.mark.parametrize(
    "name",
    [b"new\nline", b"invalid \xff\xfe", b"x" * 255, "umläut".encode(), b" ", b"-rf", b"\\"],
)
def test_a_name_may_hold_anything(agent: AgentProcess, upper: Path, name: bytes) -> None:
    folder = os.fsencode(upper / "d")
    os.mkdir(folder)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(b"content")
    os.symlink(name, os.path.join(folder, b"zzz"))
    content = archive(agent, upper)
    wanted = os.fsdecode(b"./d/" + name)
    found = members(content)
    assert wanted in found
    assert os.fsencode(found["./d/zzz"].linkname) == name
    assert content_of(content, wanted) == b"content"


def test_deep_paths_and_large_numbers(agent: AgentProcess, upper: Path) -> None:
    here = os.open(upper, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("f" * 200, dir_fd=here)
        there = os.open("f" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(os.open("file", os.O_CREAT, dir_fd=here))
    os.chown("file", WIDE_ID, WIDE_ID, dir_fd=here)
    os.utime("file", (-5, -5), dir_fd=here)
    os.close(here)
    found = members(archive(agent, upper))
    (last,) = (member for name, member in found.items() if name.endswith("/file"))
    assert len(last.name) == len("./file") + 40 * 201
    assert (last.uid, last.gid, last.mtime) == (WIDE_ID, WIDE_ID, -5)


def test_a_sparse_file_takes_no_more_than_its_data(agent: AgentProcess, upper: Path) -> None:
    size = 10 << 30
    pieces = {0: b"begin", 5 << 30: b"middle" * 1000, size - 3: b"end"}
    with (upper / "sparse").open("wb") as file:
        for place, data in pieces.items():
            file.seek(place)
            file.write(data)
    (upper / "hole").touch()
    os.truncate(upper / "hole", 1 << 30)
    content = archive(agent, upper)
    assert len(content) < 200_000
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        sparse = tar.getmember("./sparse")
        assert sparse.size == size
        file = tar.extractfile(sparse)
        assert file
        for place, data in pieces.items():
            file.seek(place)
            assert file.read(len(data)) == data
        hole = tar.getmember("./hole")
        assert hole.size == 1 << 30
        file = tar.extractfile(hole)
        assert file
        assert file.read(5000) == bytes(5000)


def test_gnu_tar_reads_it(agent: AgentProcess, upper: Path, tmp_path: Path) -> None:
    (upper / "file").write_bytes(b"content")
    (upper / ("long" * 50)).mkdir()
    (upper / "sparse").write_bytes(b"x")
    os.truncate(upper / "sparse", 5 << 20)
    other = tmp_path / "other"
    other.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "-C", str(other)]
    subprocess.run(["tar", "x", *options], input=archive(agent, upper), check=True)
    assert subprocess.run(["diff", "-r", upper, other], check=False).returncode == 0
    assert (other / "sparse").stat().st_blocks * BLOCK < 1 << 20


def test_the_same_folder_gives_the_same_bytes(agent: AgentProcess, upper: Path) -> None:
    for number in range(300):
        (upper / f"file{number}").write_bytes(b"%d" % number)
    content = archive(agent, upper)
    assert content == archive(agent, upper)
    assert len(members(content)) == 301


def test_more_than_a_window_comes_as_it_is_read(agent: AgentProcess, upper: Path) -> None:
    (upper / "large").write_bytes(os.urandom(3_000_001))
    content = archive(agent, upper)
    assert content_of(content, "./large") == (upper / "large").read_bytes()


def test_one_that_is_given_up_leaves_the_agent_well(agent: AgentProcess, upper: Path) -> None:
    (upper / "large").write_bytes(bytes(3_000_001))
    stream = agent.open(pack("capture", f"path={upper}"), is_read=False)
    agent.wait(lambda: stream.out)
    agent.send(Kind.RESET, stream.id)
    assert agent.run(["sh", "-c", "ls /proc/1/fd | wc -l"]).out


@pytest.mark.parametrize(("make", "why"), [("link", "Not a directory"), ("none", "No such file")])
def test_what_is_no_folder_is_refused(
    agent: AgentProcess, tmp_path: Path, make: str, why: str
) -> None:
    path = tmp_path / "upper"
    if make == "link":
        path.symlink_to("/etc")
    stream = captured(agent, path)
    assert stream.end
    assert stream.end.value != 0
    assert why in stream.end.fields.get("error")
    assert stream.out == b""


def test_only_a_machine_can_be_held_still(agent: AgentProcess) -> None:
    end = agent.ended(agent.open(pack("freeze", "deadline_ms=50"))).end
    assert end
    assert "No such device" in end.fields.get("error")
    assert agent.ended(agent.open(pack("freeze"))).end.fields.get("error")
