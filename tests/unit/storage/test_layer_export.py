"""Layers as others read them: whiteouts by name, holes as zeros, and an image's documents."""

import io
import json
import tarfile
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.storage import oci_layout, tar_entries
from magsd.storage.layer_export import Blob, filled, marked_by_name
from magsd.storage.layer_merging import Merge
from magsd.storage.tar_rules import Kind, TarEntry, TarRefusedError

MADE_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(path, kind=Kind.REGULAR, **values):
    given = {"mode": 0o644, "uid": 1, "gid": 2, "mtime_s": 3, **values}
    return TarEntry(path, kind, **given)


def test_whiteouts_and_opaque_directories_go_by_name():
    opaque = {b"trusted.overlay.opaque": b"y", b"user.a": b"1"}
    entries = [
        entry(b"d", Kind.DIRECTORY, xattrs=opaque),
        entry(b"d/gone", Kind.CHARACTER),
        entry(b"gone", Kind.CHARACTER),
        entry(b"d/file"),
    ]
    found = [each for one in entries for each in marked_by_name(one)]
    assert [(each.path, each.kind) for each in found] == [
        (b"d", Kind.DIRECTORY),
        (b"d/.wh..wh..opq", Kind.REGULAR),
        (b"d/.wh.gone", Kind.REGULAR),
        (b".wh.gone", Kind.REGULAR),
        (b"d/file", Kind.REGULAR),
    ]
    assert found[0].xattrs == {b"user.a": b"1"}
    assert not any(each.xattrs for each in found[1:])
    top = list(marked_by_name(entry(b"", Kind.DIRECTORY, xattrs=opaque)))
    assert [each.path for each in top] == [b"", b".wh..wh..opq"]


def test_a_file_that_would_hide_another_is_refused_and_named():
    with pytest.raises(TarRefusedError, match=r"'d/\.wh\.x'.*export as tar"):
        list(marked_by_name(entry(b"d/.wh.x")))


@given(st.binary(max_size=40), st.lists(st.integers(1, 9), max_size=6), st.integers(1, 5))
def test_holes_become_zeros(content, holes, piece):
    extents, whole, at = [], b"", 0
    for hole in holes:
        whole += bytes(hole)
        part = content[at : at + hole]
        extents.append((len(whole), len(part)))
        whole, at = whole + part, at + len(part)
    whole += b"\0"
    pieces = [content[:at][start : start + piece] for start in range(0, at, piece)]
    sparse = entry(b"s", size_bytes=len(whole), content_bytes=at, extents=tuple(extents))
    assert b"".join(filled(sparse, pieces)) == whole


def test_attributes_are_written_as_others_read_them():
    found = entry(b"a", xattrs={b"security.capability": b"\x01\0\n=", b"user.a=b": b"lost"})
    content = tar_entries.header(found, is_for_others=True) + tar_entries.END
    with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as archive:
        (member,) = archive
    assert member.pax_headers == {"SCHILY.xattr.security.capability": "\x01\0\n="}


def test_nothing_is_left_of_whiteouts_where_all_is_seen():
    merge = Merge(is_whole=True)
    top = [entry(b"", Kind.DIRECTORY), entry(b"gone", Kind.CHARACTER), entry(b"a")]
    low = [entry(b"", Kind.DIRECTORY), entry(b"gone"), entry(b"b"), entry(b"lost", Kind.CHARACTER)]
    merge.add(top)
    merge.add(low)
    merge.finish()
    seen = [merge.select(0, each) for each in top] + [merge.select(1, each) for each in low]
    assert [each.path for each in seen if each] == [b"", b"a", b"b"]


def test_an_image_in_one_archive():
    layers = [Blob("a" * 64, 700, "b" * 64), Blob("c" * 64, 512, "d" * 64)]
    found = oci_layout.layout(layers, "My_Tools", "7", MADE_AT)
    content = oci_layout.documents(found, MADE_AT)
    for blob in layers:
        content += oci_layout.member(f"blobs/sha256/{blob.sha256}", blob.size_bytes, MADE_AT)
        content += bytes(blob.size_bytes) + oci_layout.padding(blob.size_bytes)
    content += oci_layout.END
    assert len(content) == oci_layout.archive_bytes(found, layers)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive}
    (described,) = json.loads(files["index.json"])["manifests"]
    assert described["annotations"] == {"org.opencontainers.image.ref.name": "localhost/my-tools:7"}
    manifest = json.loads(files["blobs/sha256/" + described["digest"].removeprefix("sha256:")])
    assert [each["digest"][7:] for each in manifest["layers"]] == ["a" * 64, "c" * 64]
    config = json.loads(files["blobs/sha256/" + manifest["config"]["digest"][7:]])
    assert config["rootfs"]["diff_ids"] == ["sha256:" + "b" * 64, "sha256:" + "d" * 64]
    assert (config["created"], config["os"]) == ("2026-01-02T03:04:05Z", "linux")


@pytest.mark.parametrize(("name", "shown"), [("a", "a"), ("A.b__C-", "a-b-c"), ("0..9", "0-9")])
def test_an_image_has_a_name_that_images_may_have(name, shown):
    assert oci_layout.reference(name, "1") == f"localhost/{shown}:1"
