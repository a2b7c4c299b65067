"""Archives of root filesystems, as others make them and as attackers do."""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from magsd.storage import oci_layout, tar_entries
from magsd.storage.root_import import arguments, run
from magsd.storage.tar_repack import IS_EMPTY, IS_REFUSED, IS_TOO_LARGE
from magsd.storage.tar_rules import Kind, TarEntry, TarLimits, TarRefusedError

ANY = TarLimits()
MACHINE = oci_layout.architecture()


def tar(*members, **files):
    """Return a tar of members, each a `TarInfo`, and of files by their names."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def member(name, kind=tarfile.REGTYPE, **values):
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in values.items():
        setattr(made, key, value)
    return made


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def encoded(value):
    return json.dumps(value).encode()


def descriptor(content, **more):
    return {"digest": f"sha256:{sha256(content)}", "size": len(content), **more}


def image(*layers, compress=bytes, machine=MACHINE, change=lambda files: files):
    """Return an OCI archive of layers, each a tar; `change` may spoil its files."""
    blobs = [compress(layer) for layer in layers]
    diff_ids = [f"sha256:{sha256(layer)}" for layer in layers]
    config = encoded({"architecture": machine, "os": "linux", "rootfs": {"diff_ids": diff_ids}})
    manifest = encoded(
        {"config": descriptor(config), "layers": [descriptor(blob) for blob in blobs]}
    )
    index = encoded({"manifests": [descriptor(manifest)]})
    files = {f"blobs/sha256/{sha256(each)}": each for each in (*blobs, config, manifest)}
    files |= {"index.json": index, "oci-layout": encoded({"imageLayoutVersion": "1.0.0"})}
    return tar(**change(files))


def docker(*layers, name="layer.tar", count=1, machine=MACHINE):
    """Return what `docker save` of old makes of layers."""
    diff_ids = [f"sha256:{sha256(layer)}" for layer in layers]
    config = encoded({"architecture": machine, "os": "linux", "rootfs": {"diff_ids": diff_ids}})
    names = [f"{number}/{name}" for number in range(len(layers))]
    manifest = encoded([{"Config": "config.json", "RepoTags": ["a:b"], "Layers": names}] * count)
    files = {"config.json": config, "manifest.json": manifest}
    return tar(**files, **dict(zip(names, layers, strict=True)))


@pytest.fixture
def imported(tmp_path):
    """Return the names and contents that come of an archive."""

    def work(content, form="auto", limits=ANY):
        source, sink = tmp_path / "source", io.BytesIO()
        source.write_bytes(content)
        with source.open("rb") as file, (tmp_path / "scratch").open("w+b") as scratch:
            assert run(file.fileno(), scratch.fileno(), limits, form, sink)
        sink.seek(0)
        with tarfile.open(fileobj=sink) as archive:
            return {
                found.name.removeprefix("./"): archive.extractfile(found).read()
                for found in archive
                if found.isreg()
            }

    return work


LOWER = tar(a=b"lower", b=b"b")
UPPER = tar(**{"a": b"upper", ".wh.b": b"", "c": b"c"})
MERGED = {"a": b"upper", "c": b"c"}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
def test_an_image_of_two_layers(imported, compress):
    assert imported(image(LOWER, UPPER, compress=compress)) == MERGED
    assert imported(compress(image(LOWER, UPPER))) == MERGED
    assert imported(compress(image(LOWER, UPPER)), form="oci") == MERGED


def test_what_docker_saves(imported):
    assert imported(docker(LOWER, UPPER)) == MERGED


def test_a_layer_that_docker_saves_as_a_link_to_another(imported):
    config = encoded(
        {
            "architecture": MACHINE,
            "os": "linux",
            "rootfs": {"diff_ids": [f"sha256:{sha256(LOWER)}"] * 2},
        }
    )
    manifest = encoded([{"Config": "c.json", "Layers": ["x/layer.tar", "y/layer.tar"]}])
    link = member("y/layer.tar", tarfile.SYMTYPE, linkname="../x/layer.tar")
    files = {"x/layer.tar": LOWER, "c.json": config, "manifest.json": manifest}
    assert imported(tar(link, **files)) == {"a": b"lower", "b": b"b"}


def test_an_image_for_this_machine_among_others(imported):
    def change(files):
        ours = json.loads(files["index.json"])["manifests"][0]
        ours["platform"] = {"os": "linux", "architecture": MACHINE}
        missing = {
            **ours,
            "digest": f"sha256:{sha256(b'')}",
            "platform": {"os": "linux", "architecture": "other"},
        }
        unknown = {**missing, "platform": {"os": "unknown", "architecture": "unknown"}}
        inner = encoded({"manifests": [missing, ours, unknown]})
        files[f"blobs/sha256/{sha256(inner)}"] = inner
        files["index.json"] = encoded({"manifests": [descriptor(inner)]})
        return files

    assert imported(image(LOWER, change=change)) == {"a": b"lower", "b": b"b"}


def test_a_plain_root_is_none(imported):
    files = {"manifest.json": b'["not an image"]', "index.json": b"{}", "etc/x": b"x"}
    assert imported(tar(**files)) == files
    assert imported(docker(LOWER), form="tar").keys() == {
        "config.json",
        "manifest.json",
        "0/layer.tar",
    }


def without(part):
    return lambda files: {name: content for name, content in files.items() if part not in name}


def spoiled(files):
    """Another content of the same size in every blob."""
    return {
        name: content[:-1] + bytes([content[-1] ^ 1]) if "blobs" in name else content
        for name, content in files.items()
    }


def with_index(value):
    return lambda files: files | {"index.json": encoded(value)}


def two(files):
    index = json.loads(files["index.json"])
    return files | {"index.json": encoded({"manifests": index["manifests"] * 2})}


def recursive(files):
    """A list of images that never comes to one."""
    inner = encoded({"manifests": []})
    for _ in range(5):
        files[f"blobs/sha256/{sha256(inner)}"] = inner
        inner = encoded({"manifests": [descriptor(inner)]})
    return files | {"index.json": inner}


IMAGES = {
    "another machine": (image(LOWER, machine="pdp11"), "for 'linux/pdp11'"),
    "another machine, docker": (docker(LOWER, machine="pdp11"), "for 'linux/pdp11'"),
    "several": (docker(LOWER, count=2), "2 images: save one alone"),
    "several in a layout": (image(LOWER, change=two), "2 images"),
    "none": (image(LOWER, change=with_index({"manifests": []})), "no image"),
    "no list": (image(LOWER, change=with_index({"manifests": 7})), "cannot be"),
    "no object": (image(LOWER, change=with_index([])), "no JSON object"),
    "ring": (image(LOWER, change=recursive), "a list of images that cannot be"),
    "missing": (image(LOWER, change=without(sha256(LOWER))), "lacks"),
    "spoiled": (image(LOWER, change=spoiled), "damaged"),
    "digest": (
        image(LOWER, change=with_index({"manifests": [{"digest": "sha256:../../../etc/passwd"}]})),
        "not by sha256",
    ),
    "number of layers": (docker(LOWER, name="other").replace(b"sha256:", b"sha512:", 1), "sha256"),
    "too many layers": (image(*[LOWER] * 129), "more than 128"),
}


@pytest.mark.parametrize(("content", "said"), IMAGES.values(), ids=IMAGES)
def test_images_that_may_not_be(imported, content, said):
    with pytest.raises(TarRefusedError, match=said) as caught:
        imported(content)
    assert str(caught.value).isprintable()


def test_a_layer_of_docker_that_was_altered(imported):
    with pytest.raises(TarRefusedError, match="is damaged"):
        imported(docker(LOWER).replace(b"lower", b"LOWER"))


def test_no_image_where_one_is_wanted(imported):
    with pytest.raises(TarRefusedError, match="holds no image"):
        imported(LOWER, form="oci")


ROOTS = {
    "parent above": tar(member("../x")),
    "parent within": tar(member("d", tarfile.DIRTYPE), member("d/../../x")),
    "absolute": tar(member("/etc/x")),
    "absolute link": tar(member("a"), member("h", tarfile.LNKTYPE, linkname="/a")),
    "hard link outside": tar(member("h", tarfile.LNKTYPE, linkname="../../etc/shadow")),
    "below a link": tar(member("l", tarfile.SYMTYPE, linkname="/etc"), member("l/x")),
    "disk": tar(member("dev/sda", tarfile.BLKTYPE, devmajor=8)),
    "memory": tar(member("mem", tarfile.CHRTYPE, devmajor=1, devminor=1)),
    "whiteout": tar(member("gone", tarfile.CHRTYPE)),
    "opaque": tar(
        member("d", tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"})
    ),
    "redirect": tar(member("d", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})),
    "top": tar(member(".", tarfile.SYMTYPE, linkname="/etc")),
}


@pytest.mark.parametrize("is_image", [False, True])
@pytest.mark.parametrize("content", ROOTS.values(), ids=ROOTS)
def test_roots_that_may_not_be(imported, content, is_image):
    with pytest.raises(TarRefusedError, match="the entry '") as caught:
        imported(image(content) if is_image else content)
    assert not caught.value.is_too_large


def test_what_is_hidden_is_checked_too(imported):
    with pytest.raises(TarRefusedError, match="is a device"):
        imported(image(ROOTS["disk"], tar(**{"dev/.wh.sda": b""})))


def test_a_label_of_another_machines_policy_is_left_out(imported):
    labelled = member("a", pax_headers={"SCHILY.xattr.security.selinux": "x:y:z"})
    assert imported(tar(labelled)).keys() == {"a"}


BIG = tar(a=bytes(1 << 20))
SPARSE = (
    tar_entries.header(TarEntry(b"s", Kind.REGULAR, 0o644, 0, 0, 0, size_bytes=1 << 41, extents=()))
    + tar_entries.END
)
LIMITS = {
    "content": (BIG, TarLimits(content_bytes=1 << 19), "content becomes too much"),
    "layers together": (
        image(*[BIG] * 3),
        TarLimits(content_bytes=(1 << 21) + 1),
        "content becomes too much",
    ),
    "hidden": (image(BIG, tar(a=b"")), TarLimits(content_bytes=1 << 19), "too much"),
    "holes": (SPARSE, TarLimits(apparent_bytes=1 << 40), "files become too large"),
    "entries": (tar(*map(member, "abcd")), TarLimits(entries=3), "entries become too many"),
    "bomb": (gzip.compress(bytes(8 << 20)), TarLimits(content_bytes=1 << 20), "too large without"),
    "bomb in an image": (
        image(BIG, compress=gzip.compress),
        TarLimits(content_bytes=1 << 19),
        "too much",
    ),
    "path": (tar(member("x/" * 40 + "y")), TarLimits(depth=20), "lies deeper"),
}


@pytest.mark.parametrize(("content", "limits", "said"), LIMITS.values(), ids=LIMITS)
def test_what_is_over_a_limit(imported, content, limits, said):
    with pytest.raises(TarRefusedError, match=said):
        imported(content, limits=limits)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(LOWER)[:-20], "compression is damaged"),
        (gzip.compress(LOWER) + b"junk", "compression is damaged"),
        (zstandard.compress(LOWER)[:4] + b"\xff" * 40, "compression is damaged"),
        (zstandard.compress(LOWER)[:20], "ends early"),
        (b"BZh9", "with bzip2: use gzip or zstd"),
        (b"PK\x03\x04", "with zip"),
        (LOWER + b"x" * 512, "end mark"),
        (LOWER[:700], "ends early"),
        (b"", "ends early"),
        (b"hello" * 300, "checksum"),
    ],
)
def test_what_is_no_archive(imported, content, said):
    with pytest.raises(TarRefusedError, match=said):
        imported(content)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_is_changed_it_is_refused_or_understood(tmp_path_factory, data):
    content = bytearray(image(LOWER, UPPER))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("changed")
    (folder / "source").write_bytes(content)
    with (
        (folder / "source").open("rb") as source,
        (folder / "scratch").open("w+b") as scratch,
        suppress(TarRefusedError),
    ):
        run(source.fileno(), scratch.fileno(), ANY, "auto", io.BytesIO())


@pytest.mark.parametrize(
    ("content", "limits", "code"),
    [
        (LOWER, ANY, 0),
        (tar(member(".", tarfile.DIRTYPE)), ANY, IS_EMPTY),
        (ROOTS["disk"], ANY, IS_REFUSED),
        (BIG, TarLimits(content_bytes=1), IS_TOO_LARGE),
    ],
)
def test_the_program_ends_with_what_it_found(tmp_path, content, limits, code):
    (tmp_path / "source").write_bytes(content)
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "scratch").open("w+b") as scratch,
    ):
        files = source.fileno(), scratch.fileno()
        command = [sys.executable, "-I", "-m", "magsd.storage.root_import"]
        done = subprocess.run(
            [*command, *arguments(*files, limits, "auto")],
            pass_fds=files,
            capture_output=True,
            check=False,
        )
    assert done.returncode == code, done.stderr
    assert done.stderr.count(b"\n") == (code in (IS_REFUSED, IS_TOO_LARGE))
