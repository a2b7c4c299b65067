"""Workspaces that leave as archives and come back: by the command, with what others make of them."""

import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magsd.storage.images import ImageStore
from tests import census
from tests.alpine import alpine_squashfs
from tests.e2e.pool_census import at_rest
from tests.e2e.server import MAGS, REPOSITORY, Server, eventually
from tests.podman import Podman

_CHANGES = """
set -e
echo kept > /root/file; chmod 640 /root/file; chown 12:34 /root/file; ln /root/file /root/second
ln -s file /root/link
printf '#!/bin/sh\\necho works\\n' > /usr/bin/tool; chmod 4755 /usr/bin/tool
rm /etc/issue; rm -rf /etc/apk && mkdir /etc/apk && echo mine > /etc/apk/only
mkdir '/root/a b'; echo x > '/root/a b/c'
"""
_LOOK = """
stat -c '%n %a %u:%g %h' /root/file; readlink /root/link; tool; stat -c %a /usr/bin/tool
test -e /etc/issue || echo gone; ls /etc/apk; cat '/root/a b/c'
"""
_SEEN = ["/root/file 640 12:34 2", "file", "works", "4755", "gone", "only", "x"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with a small image, and of which nothing is left in the end."""
    own = Server(tmp_path_factory.mktemp("export"), MAGSD_WORKSPACE_IMPORT_ENTRIES="30000")
    before = census.take(own.data)
    own.add_image()
    alpine = alpine_squashfs(REPOSITORY / "build/alpine")
    ImageStore(own.data).add("alpine", alpine, {})
    try:
        own.start()
        yield own
        at_rest(own)
    finally:
        own.stop()
    census.assert_same(before, own.data)


@pytest.fixture(scope="module")
def made(server: Server) -> str:
    """A workspace of two versions, of which the second is what `_LOOK` shows."""
    first = server.run("echo first > /root/first", workspace_id="Made_1", rootfs_type="alpine")
    assert first["workspace_synced"], first
    second = server.run(f"rm /root/first\n{_CHANGES}", workspace_id="Made_1")
    assert (second["status"], second["workspace_synced"]) == ("completed", True), second
    return "Made_1"


@pytest.fixture
def podman() -> Iterator[Podman]:
    # Of a path of more than 50 characters it wants to know nothing.
    with tempfile.TemporaryDirectory(prefix="podman-") as folder:
        yield Podman(Path(folder))


class _Mags:
    """`mags workspace`, in a folder."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "MAGS_API_URL": server.url,
            "MAGS_API_TOKEN": server.token,
        }

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [MAGS, "workspace", *words],
            env=self._environment,
            cwd=self._folder,
            capture_output=True,
            timeout=120,
            check=False,
            **options,
        )

    def __call__(self, *words: str, **options: Any) -> str:
        done = self.run(*words, **options)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def mags(server: Server, tmp_path: Path) -> _Mags:
    return _Mags(server, tmp_path)


def _staged(server: Server) -> list[Path]:
    return list((server.data / "layers/.staging").iterdir())


def test_an_image_is_run_by_others_and_comes_back(
    server: Server, made: str, mags: _Mags, podman: Podman, tmp_path: Path
) -> None:
    told = mags.json("export", made, "-o", "out.tar")
    assert told["size_bytes"] == (tmp_path / "out.tar").stat().st_size
    image = podman.load(tmp_path / "out.tar")
    assert image == "localhost/made-1:2"
    assert podman.run(image, _LOOK) == _SEEN
    assert podman.run(image, "pwd; test ! -e first") == ["/root"]
    for form in ("docker-archive", "oci-archive"):
        podman("save", "--quiet", "--format", form, "--output", tmp_path / form, image)
        reply = mags.json("import", form, str(tmp_path / form))
        assert (reply["version"], reply["image"], reply["layers"]) == (1, "imported", 1)
    assert server.run(_LOOK, workspace_id="docker-archive")["stdout"] == _SEEN
    sizes = {each["workspace_id"]: each["size_bytes"] for each in mags.json("list")["workspaces"]}
    assert sizes["docker-archive"] == sizes["oci-archive"] > 0
    later = server.run("echo more > /root/more", workspace_id="oci-archive")
    assert later["workspace_synced"] is True
    assert server.run(_LOOK, workspace_id="oci-archive")["stdout"] == _SEEN
    assert _staged(server) == []


def test_a_tar_holds_all_that_is_seen_and_comes_back(
    server: Server, made: str, mags: _Mags, tmp_path: Path
) -> None:
    content = mags.run("export", made, "--format", "tar", "-o", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = {member.name.removeprefix("./"): member for member in archive}
        assert archive.extractfile(members["root/a b/c"]).read() == b"x\n"  # type: ignore[union-attr]
    assert (members["root/file"].mode, members["root/file"].uid) == (0o640, 12)
    assert "bin/busybox" in members
    assert not {"etc/issue", "etc/apk/world", "root/first"} & members.keys()
    assert not [member for member in members.values() if member.ischr()]
    imported = mags("import", "from-tar", "-", input=content)
    assert "from-tar is there" in imported
    assert server.run(_LOOK, workspace_id="from-tar")["stdout"] == _SEEN


def test_an_earlier_version_can_be_had(server: Server, mags: _Mags) -> None:
    server.run("echo 1 > /root/first", workspace_id="twice")
    server.run("rm /root/first; echo 2 > /root/second", workspace_id="twice")
    earlier = mags.run("export", "twice", "--version", "1", "--format", "tar", "-o", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(earlier)) as archive:
        names = {member.name for member in archive}
    assert "./root/first" in names
    assert "./root/second" not in names


def test_the_rest_of_the_command(server: Server, made: str, mags: _Mags) -> None:
    assert made in mags("list")
    assert [each["version"] for each in mags.json("versions", made)["versions"]] == [2, 1]
    assert mags.json("fork", made, "tried", "--version", "1")["version"] == 1
    assert server.run("cat /root/first", workspace_id="tried")["stdout"] == ["first"]
    server.run("echo 2 > /root/first", workspace_id="tried")
    assert mags.json("restore", "tried", "1")["version"] == 3
    assert server.run("cat /root/first", workspace_id="tried")["stdout"] == ["first"]
    eventually(lambda: _states(mags, "tried") == {"live"})
    done = mags.json("gc", "--keep", "1")
    assert done["versions_deleted"] >= 2
    assert done["layers_deleted"] >= 1
    assert [each["version"] for each in mags.json("versions", "tried")["versions"]] == [3]
    assert server.run("cat /root/first", workspace_id="tried")["stdout"] == ["first"]
    assert "deleted" in mags("delete", "tried", "--yes")
    assert server.run(_LOOK, workspace_id=made)["stdout"] == _SEEN


def _states(mags: _Mags, name: str) -> set[str]:
    return {each["state"] for each in mags.json("versions", name)["versions"]}


def test_what_may_not_be_is_one_line_that_says_why(
    server: Server, made: str, mags: _Mags, tmp_path: Path
) -> None:
    device = tarfile.TarInfo("dev/sda")
    device.type, device.devmajor = tarfile.BLKTYPE, 8
    with tarfile.open(tmp_path / "device.tar", "w") as archive:
        archive.addfile(device)
    with tarfile.open(tmp_path / "many.tar", "w") as archive:
        for number in range(30_001):
            archive.addfile(tarfile.TarInfo(str(number)))
    for words, code, said in (
        (("import", made, "device.tar"), 1, "already"),
        (("import", "new", "device.tar"), 1, "is a device"),
        (("import", "new", "many.tar"), 1, "too many"),
        (("import", "new", "missing.tar"), 1, "cannot be read"),
        (("export", "nothing"), 4, "no workspace"),
        (("export", made, "--version", "99"), 4, "no version 99"),
        (("versions", "nothing"), 4, "no workspace"),
    ):
        done = mags.run(*words)
        assert done.returncode == code, (words, done.stderr)
        assert said in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1
    assert "new" not in mags("list").split()
    assert {each.name for each in tmp_path.iterdir()} == {"device.tar", "many.tar"}
    assert _staged(server) == []


def test_who_leaves_in_the_middle_leaves_nothing(
    server: Server, made: str, mags: _Mags, tmp_path: Path
) -> None:
    path = f"/mags-workspaces/{made}/export"
    with server.http() as http:
        for form in ("tar", "oci"):
            with http.stream("GET", path, params={"format": form}) as reply:
                assert reply.status_code == 200
                next(reply.iter_raw())
    eventually(lambda: _staged(server) == [])
