"""Archives from guests: what of them gets into a layer, and that nothing else does."""

import io
import subprocess
import sys
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magsd.storage import tar_entries
from magsd.storage.tar_repack import IS_EMPTY, IS_REFUSED, IS_TOO_LARGE, arguments, repack
from magsd.storage.tar_rules import Kind, TarEntry, TarLimits, TarRefusedError, TarRules

CAPABILITY = b"\x01\0\0\x02\0 \0\0\0\0\0\0\0\0\0\0\0\0\0\0"


def entry(path, kind=Kind.REGULAR, **values):
    given = {"mode": 0o644, "uid": 1, "gid": 2, "mtime_s": 1_000_000_000, **values}
    return TarEntry(path, kind, **given)


def archive(*entries, content=b"", end=tar_entries.END):
    """Return an archive of entries, each regular one with `content`."""
    pieces = []
    for each in entries:
        if each.kind is Kind.REGULAR and each.extents is None:
            each.size_bytes = each.content_bytes = len(content)
        pieces += [schily(each), content[: each.content_bytes], tar_entries.padding(each)]
    return b"".join([*pieces, end])


def schily(each):
    """Attributes as guests send them, and not as we write them."""
    xattrs, each.xattrs = each.xattrs, {}
    records = b"".join(
        tar_entries._record(b"SCHILY.xattr." + tar_entries._quoted(name), value)
        for name, value in xattrs.items()
    )
    in_front = tar_entries._ustar(b"pax", b"x", 0, 0, 0, len(records), 0, b"") + records
    own = tar_entries.header(each)
    if each.kind in (Kind.CHARACTER, Kind.BLOCK) and each.device != (0, 0):
        own = with_device(own, each.device)
    return own if not xattrs else in_front + bytes(-len(records) % 512) + own


def with_device(header, device):
    changed = bytearray(header)
    changed[329:345] = b"%07o\0%07o\0" % device
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


ANY = TarLimits()


def repacked(content, limits=ANY, is_ours=False):
    sink = io.BytesIO()
    rules = TarRules(limits, is_ours=is_ours)
    repack(io.BytesIO(content), sink, rules, limits)
    return sink.getvalue(), rules


def listed(content):
    """Return the entries as our own reader understands them, with their content."""
    reader = tar_entries.TarReader(io.BytesIO(content), TarLimits())
    return {each.path: (each, b"".join(reader.content())) for each in reader}


def everything():
    return [
        entry(b"", Kind.DIRECTORY, mode=0o711),
        entry(b"folder", Kind.DIRECTORY, xattrs={b"trusted.overlay.opaque": b"y"}, mode=0o3777),
        entry(
            b"folder/file",
            mode=0o4755,
            uid=4_000_000_000,
            xattrs={b"security.capability": CAPABILITY, b"user.a=b%": b"\0\n=\xff", b"user.e": b""},
        ),
        entry(b"folder/new\nline\xff" + b"n" * 150, mtime_s=0),
        entry(b"link", Kind.SYMLINK, target=b"/etc/../" + b"x" * 200),
        entry(b"hard", Kind.HARD_LINK, target=b"folder/file"),
        entry(b"fifo", Kind.FIFO),
        entry(b"gone", Kind.CHARACTER),
        entry(b"gone too", Kind.HARD_LINK, target=b"gone"),
    ]


def test_all_that_may_be_in_a_layer_comes_through():
    packed, rules = repacked(archive(*everything(), content=b"abc"))
    assert not rules.is_empty
    with tarfile.open(fileobj=io.BytesIO(packed)) as found:
        members = {member.name.encode("utf-8", "surrogateescape"): member for member in found}
    wanted = {b"./" + each.path if each.path else b".": each for each in everything()}
    assert members.keys() == wanted.keys()
    for name, member in members.items():
        each = wanted[name]
        if each.path in (b"gone", b"gone too"):
            assert (member.ischr(), member.devmajor, member.devminor) == (True, 0, 0)
            continue
        assert (member.mode, member.uid, member.mtime) == (each.mode, each.uid, each.mtime_s)
        assert (member.type, member.size) == (each.kind.value, 3 if member.isreg() else 0)
    assert members[b"./hard"].linkname == "./folder/file"
    assert members[b"./link"].linkname == "/etc/../" + "x" * 200


def test_attributes_are_written_so_that_any_name_and_value_comes_through():
    content = tar_entries.header(entry(b"a", xattrs={b"user.a=b%": b"\0\n=", b"user.e": b""}))
    assert b" LIBARCHIVE.xattr.user.a%3Db%25=AAo9\n" in content
    assert b" LIBARCHIVE.xattr.user.e=\n" in content


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_other_writers_archives_are_understood(form):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as made:
        for name in ("d", "d/" + "e" * 90, "d/" + "e" * 90 + "/" + "f" * 90):
            member = tarfile.TarInfo(name)
            member.type, member.uid = tarfile.DIRTYPE, 2_000_000
            made.addfile(member)
    packed, _ = repacked(stream.getvalue())
    assert sorted(map(len, listed(packed))) == [3, 94, 185]


def test_holes_are_kept_as_holes():
    sparse = entry(b"s", size_bytes=10 << 30, content_bytes=7, extents=((5, 4), (9 << 30, 3)))
    packed, _ = repacked(archive(sparse, content=b"1234567"))
    found, content = listed(packed)[b"./s"]
    assert (found.size_bytes, found.extents) == (10 << 30, ((5, 4), (9 << 30, 3)))
    assert content == b"1234567"
    assert len(packed) < 4096


def test_an_archive_of_nothing_is_empty():
    assert repacked(archive(entry(b"", Kind.DIRECTORY)))[1].is_empty
    assert repacked(archive())[1].is_empty


ROOT = entry(b"", Kind.DIRECTORY)
REFUSED = {
    "parent above": [entry(b"../x")],
    "parent within": [entry(b"d", Kind.DIRECTORY), entry(b"d/../../x")],
    "below a link": [entry(b"l", Kind.SYMLINK, target=b"/etc"), entry(b"l/x")],
    "below a file": [entry(b"f"), entry(b"f/x")],
    "below nothing": [entry(b"d/x")],
    "twice": [entry(b"x"), entry(b"x", Kind.SYMLINK, target=b"y")],
    "link and file": [entry(b"x", Kind.SYMLINK, target=b"/etc/passwd"), entry(b"x")],
    "empty part": [entry(b"d", Kind.DIRECTORY), entry(b"d//x")],
    "dot": [entry(b"d", Kind.DIRECTORY), entry(b"d/./x")],
    "long name": [entry(b"n" * 256)],
    "hard link outside": [entry(b"h", Kind.HARD_LINK, target=b"../../etc/shadow")],
    "hard link to nothing": [entry(b"h", Kind.HARD_LINK, target=b"later"), entry(b"later")],
    "hard link to a folder": [
        entry(b"d", Kind.DIRECTORY),
        entry(b"h", Kind.HARD_LINK, target=b"d"),
    ],
    "device": [entry(b"sda", Kind.BLOCK, device=(8, 0))],
    "character device": [entry(b"mem", Kind.CHARACTER, device=(1, 1))],
    "block whiteout": [entry(b"b", Kind.BLOCK)],
    "trusted": [entry(b"f", xattrs={b"trusted.overlay.redirect": b"/etc"})],
    "metacopy": [entry(b"f", xattrs={b"trusted.overlay.metacopy": b""})],
    "selinux": [entry(b"f", xattrs={b"security.selinux": b"x"})],
    "opaque file": [entry(b"f", xattrs={b"trusted.overlay.opaque": b"y"})],
    "strange opaque": [entry(b"d", Kind.DIRECTORY, xattrs={b"trusted.overlay.opaque": b"x"})],
    "attribute of a link": [entry(b"l", Kind.SYMLINK, target=b"x", xattrs={b"user.a": b""})],
    "attribute without a name": [entry(b"f", xattrs={b"user.": b""})],
    "link to nothing": [entry(b"l", Kind.SYMLINK)],
    "root file": [entry(b"")],
}


@pytest.mark.parametrize("entries", REFUSED.values(), ids=REFUSED)
def test_what_may_not_be_in_a_layer_is_refused_and_named(entries):
    content = archive(*entries)
    with pytest.raises(TarRefusedError, match="the entry '") as caught:
        repacked(content)
    assert not caught.value.is_too_large
    assert str(caught.value).isprintable()


def test_an_absolute_path_is_refused():
    content = archive(entry(b"etc")).replace(b"./etc", b"//etc", 1)
    changed = bytearray(content)
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    with pytest.raises(TarRefusedError, match="relative"):
        repacked(bytes(changed))


def test_of_a_directory_of_ours_the_rest_is_left_out():
    entries = [
        entry(b"d", Kind.DIRECTORY, xattrs={b"trusted.overlay.origin": b"x", b"user.a": b"1"}),
        entry(b"null", Kind.CHARACTER, device=(1, 3)),
    ]
    found = listed(repacked(archive(*entries), is_ours=True)[0])
    assert found[b"./null"][0].is_whiteout
    assert len(found) == 2


LIMITS = {
    "content": (TarLimits(content_bytes=5), [entry(b"a"), entry(b"b")]),
    "apparent": (
        TarLimits(apparent_bytes=1 << 30),
        [entry(b"s", size_bytes=2 << 30, extents=(), content_bytes=0)],
    ),
    "entries": (TarLimits(entries=1), [entry(b"a"), entry(b"b")]),
    "depth": (TarLimits(depth=1), [entry(b"d", Kind.DIRECTORY), entry(b"d/x")]),
    "path": (TarLimits(path_bytes=110), [entry(b"n" * 120)]),
    "records": (TarLimits(records_bytes=512), [entry(b"f", xattrs={b"user.a": b"x" * 600})]),
    "metadata": (TarLimits(metadata_bytes=100), [entry(b"f", xattrs={b"user.a": b"x" * 100})]),
    "extents": (
        TarLimits(extents=1),
        [entry(b"s", size_bytes=9, extents=((0, 1), (2, 1), (4, 1)), content_bytes=3)],
    ),
}


@pytest.mark.parametrize(("limits", "entries"), LIMITS.values(), ids=LIMITS)
def test_what_is_over_a_limit_is_refused(limits, entries):
    with pytest.raises(TarRefusedError) as caught:
        repacked(archive(*entries, content=b"abc"), limits)
    assert caught.value.is_too_large


@pytest.mark.parametrize(
    "extents", [((4, 3), (0, 4)), ((0, 4), (3, 3)), ((0, 7), (9, 1)), ((0, 6),), ((8, 7),)]
)
def test_a_map_that_cannot_be_is_refused(extents):
    sparse = entry(b"s", size_bytes=10, content_bytes=7, extents=extents)
    with pytest.raises(TarRefusedError):
        repacked(archive(sparse, content=b"1234567"))


def test_an_archive_that_ends_early_is_refused_wherever_that_is():
    whole = archive(*everything(), content=b"abc" * 300)
    for size in (*range(0, len(whole) - 512, 97), len(whole) - 1):
        with pytest.raises(TarRefusedError):
            repacked(whole[:size])
    with pytest.raises(TarRefusedError, match="end mark"):
        repacked(whole + b"more")


WHOLE = archive(*everything(), content=b"abc" * 10)
EDITS = st.lists(
    st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 3), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


def damaged(edits, is_summed):
    """Return an archive with some bytes changed, and checksums that are right all the same."""
    content = bytearray(WHOLE)
    for at, size, replacement in edits:
        content[at : at + size] = replacement
    for at in range(0, len(content) - 511, 512) if is_summed else ():
        if content[at + 257 : at + 262] == b"ustar":
            content[at + 148 : at + 156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)


@settings(max_examples=300)
@given(EDITS, st.booleans())
def test_a_damaged_archive_is_refused_or_harmless(edits, is_summed):
    check_harmless(damaged(edits, is_summed))


@given(st.binary(max_size=2048))
def test_what_is_no_archive_is_refused_or_harmless(content):
    check_harmless(content)


def check_harmless(content):
    try:
        packed, _ = repacked(content)
    except TarRefusedError:
        return
    with tarfile.open(fileobj=io.BytesIO(packed)) as found:
        for member in found:
            parts = member.name.split("/")
            assert ".." not in parts
            assert parts[0] == "."
            assert member.type in b"0123456".replace(b"4", b"")
            assert (member.devmajor, member.devminor) == (0, 0)


@pytest.mark.parametrize(
    ("content", "limits", "status"),
    [
        (archive(entry(b"x"), content=b"abc"), TarLimits(), 0),
        (archive(), TarLimits(), IS_EMPTY),
        (archive(entry(b"../x")), TarLimits(), IS_REFUSED),
        (archive(entry(b"x"), content=b"abc"), TarLimits(content_bytes=2), IS_TOO_LARGE),
    ],
)
def test_the_program_says_by_its_exit_status_what_it_found(content, limits, status):
    words = arguments(limits, is_ours=False)
    done = subprocess.run(
        [sys.executable, "-I", "-m", "magsd.storage.tar_repack", *words],
        input=content,
        capture_output=True,
        check=False,
    )
    assert done.returncode == status
    assert (b"entry" in done.stderr) == (status in (IS_REFUSED, IS_TOO_LARGE))
