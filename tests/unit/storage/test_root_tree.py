"""What of others' layers is visible, decided by names."""

import pytest

from magsd.storage.root_tree import Tree
from magsd.storage.tar_rules import Kind, TarEntry, TarRefusedError


def entry(path, kind=Kind.REGULAR, **values):
    given = {"mode": 0o644, "uid": 0, "gid": 0, "mtime_s": 0, **values}
    return TarEntry(path, kind, **given)


def folder(path, mode=0o755):
    return entry(path, Kind.DIRECTORY, mode=mode)


def link(path, target):
    return entry(path, Kind.HARD_LINK, target=target)


def seen(*layers, is_image=True):
    """Return where content comes from (layer, the lowest is 0, and number), directories, links."""
    tree = Tree()
    for entries in reversed(layers):
        tree.add(iter(entries), is_image=is_image)
    tree.finish()
    files = {
        path: (len(layers) - 1 - layer, number)
        for layer, places in enumerate(tree.placed)
        for number, path in places.items()
    }
    return files, {each.path: each.mode for each in tree.directories}, tree.links


def test_an_upper_layer_is_seen_first():
    files, folders, _ = seen(
        [folder(b"d", 0o700), entry(b"d/a"), entry(b"d/b")], [folder(b"d", 0o711), entry(b"d/a")]
    )
    assert files == {b"d/a": (1, 1), b"d/b": (0, 2)}
    assert folders == {b"": 0o755, b"d": 0o711}


@pytest.mark.parametrize("is_first", [True, False])
def test_whiteouts_hide_what_is_below_them_alone(is_first):
    hiding = [entry(b"d/.wh.a"), entry(b"d/.wh.sub"), entry(b"d/sub/new")]
    lower = [entry(b"d/a"), entry(b"d/sub/old"), entry(b"d/b")]
    files, _, _ = seen(lower, hiding if is_first else hiding[::-1])
    assert files == {b"d/sub/new": (1, 2 if is_first else 0), b"d/b": (0, 2)}


@pytest.mark.parametrize("is_first", [True, False])
def test_an_opaque_directory_shows_its_own_alone(is_first):
    upper = [entry(b"d/.wh..wh..opq"), entry(b"d/new")]
    files, folders, _ = seen(
        [folder(b"d", 0o700), entry(b"d/old"), entry(b"d/sub/older")],
        upper if is_first else upper[::-1],
    )
    assert files == {b"d/new": (1, 1 if is_first else 0)}
    assert folders == {b"": 0o755, b"d": 0o700}


def test_an_opaque_top_hides_everything():
    assert seen([entry(b"a"), entry(b"d/b")], [entry(b".wh..wh..opq"), entry(b"c")])[0] == {
        b"c": (1, 1)
    }


def test_a_file_in_the_place_of_a_directory_and_the_other_way_round():
    lower = [folder(b"d"), entry(b"d/a"), entry(b"f")]
    files, folders, _ = seen(lower, [entry(b"d"), folder(b"f"), entry(b"f/x")])
    assert files == {b"d": (1, 0), b"f/x": (1, 2)}
    assert folders.keys() == {b"", b"f"}
    # What was hidden once does not come back.
    assert seen(lower, [entry(b".wh.d")], [entry(b"d/b")])[0] == {b"d/b": (2, 0), b"f": (0, 2)}


def test_a_directory_that_is_not_named_is_as_below():
    _, folders, _ = seen([folder(b"tmp", 0o1777)], [entry(b"tmp/x"), entry(b"new/y")])
    assert folders == {b"": 0o755, b"tmp": 0o1777, b"new": 0o755}


def test_whiteouts_are_files_in_a_plain_archive():
    assert seen([entry(b".wh.a"), entry(b"a")], is_image=False)[0].keys() == {b".wh.a", b"a"}


def test_bookkeeping_of_storage_drivers_is_left_out():
    assert seen([entry(b".wh..wh.plnk"), entry(b"a")])[0].keys() == {b"a"}


def test_the_last_of_two_counts():
    assert seen([entry(b"a"), entry(b"a")])[0] == {b"a": (0, 1)}


def test_hard_links_keep_their_content():
    files, _, links = seen(
        [entry(b"a"), link(b"b", b"a"), link(b"c", b"b")],
        [entry(b".wh.a"), entry(b"new"), link(b"other", b"new")],
    )
    # Its first name is gone, and what it was called second has the content.
    assert files == {b"b": (0, 0), b"new": (1, 1)}
    assert sorted(links) == [(b"c", b"b"), (b"other", b"new")]


def test_a_hard_link_to_a_lower_layer():
    files, _, links = seen([entry(b"a"), link(b"a2", b"a")], [link(b"b", b"a2")])
    assert files == {b"a": (0, 0)}
    assert links == [(b"a2", b"a"), (b"b", b"a2")]


def test_a_name_that_was_replaced_is_another_files():
    files, _, links = seen([entry(b"a"), link(b"b", b"a")], [entry(b"a")])
    assert files == {b"a": (1, 0), b"b": (0, 0)}
    assert links == []


REFUSED = {
    "below a link": [[entry(b"l", Kind.SYMLINK, target=b"/etc"), entry(b"l/x")]],
    "below a later link": [[entry(b"l/x"), entry(b"l", Kind.SYMLINK, target=b"/etc")]],
    "below a file": [[entry(b"f"), entry(b"f/d/x")]],
    "link, then file": [[entry(b"x", Kind.SYMLINK, target=b"/etc/passwd"), entry(b"x")]],
    "two links": [[entry(b"x", Kind.SYMLINK, target=b"y"), entry(b"x", Kind.SYMLINK, target=b"z")]],
    "below a lower link": [[entry(b"l", Kind.SYMLINK, target=b"/etc")], [entry(b"l/x")]],
    "hard link to nothing": [[link(b"h", b"nothing")]],
    "hard link to itself": [[link(b"h", b"h")]],
    "hard links in a ring": [[link(b"g", b"h"), link(b"h", b"g")]],
    "hard link to a directory": [[folder(b"d"), link(b"h", b"d")]],
    "hard link to a directory below": [[folder(b"d")], [link(b"h", b"d")]],
    "hard link to what is gone": [[entry(b"a")], [entry(b".wh.a"), link(b"h", b"a")]],
    "hides its parent": [[entry(b"d/.wh...")]],
    "hides nothing": [[entry(b".wh.")]],
}


@pytest.mark.parametrize("layers", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_and_named(layers):
    with pytest.raises(TarRefusedError, match="the entry '"):
        seen(*layers)
