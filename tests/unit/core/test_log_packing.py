"""A log as one object."""

import hashlib
import io
import subprocess
import tarfile

import pytest
import zstandard

from magsd.core.log_packing import pack, unpack
from tests.unit.guest.journal_writer import JournalWriter


@pytest.fixture
def log(tmp_path):
    directory = tmp_path / "log"
    directory.mkdir()
    JournalWriter(directory).add(b"hello\n")
    (directory / "journal.7").touch()
    (directory / "state").write_bytes(b"state")
    (directory / "record.json").write_text("{}")
    (directory / "other").write_text("not of the log")
    (directory / "journal.link").symlink_to("/etc/passwd")
    return directory


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_packed_is_unpacked(log, tmp_path):
    packed = pack(log)
    assert packed.sha256 == hashlib.sha256(packed.content).hexdigest()
    (tmp_path / "object").write_bytes(packed.content)
    unpack(tmp_path / "object", tmp_path / "back")
    kept = {"journal.head", "state", "record.json"}
    assert files(tmp_path / "back") == {
        name: content for name, content in files(log).items() if name in kept
    }
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o700


def test_plain_tools_read_it(log):
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(pack(log).content)).read()
    listed = subprocess.run(["tar", "-t"], input=plain, capture_output=True, check=True).stdout
    assert listed.split() == [b"journal.head", b"record.json", b"state"]


def test_nothing_there_is_nothing(tmp_path):
    assert pack(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("../journal.0", tarfile.REGTYPE, 1),
        ("/journal.0", tarfile.REGTYPE, 1),
        ("other", tarfile.REGTYPE, 1),
        ("journal.0", tarfile.SYMTYPE, 0),
        ("journal.0", tarfile.DIRTYPE, 0),
        ("journal.0", tarfile.REGTYPE, 33 << 20),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, name, kind, size):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, size, "/etc/passwd"
        tar.addfile(member, io.BytesIO(bytes(size)))
    (tmp_path / "object").write_bytes(zstandard.compress(plain.getvalue()))
    with pytest.raises(ValueError, match="not part of a log"):
        unpack(tmp_path / "object", tmp_path / "back")
