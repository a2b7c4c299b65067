"""What merged layers show, against a plain model of an overlay."""

from hypothesis import given
from hypothesis import strategies as st

from magsd.storage.layer_merging import Merge
from magsd.storage.tar_rules import Kind, TarEntry

NAMES = (b"a", b"b", b"c")
WHITEOUT, OPAQUE = "whiteout", "opaque"

Tree = dict[bytes, "Tree | str"]
"""Of names: a folder, a whiteout, or the content of a file. A folder that is opaque says so."""


def trees(depth: int) -> st.SearchStrategy[Tree]:
    leaves = st.sampled_from([WHITEOUT, "one", "two"])
    below = st.one_of(leaves, trees(depth - 1)) if depth else leaves
    names = st.dictionaries(st.sampled_from(NAMES), below, max_size=3)
    return st.tuples(names, st.booleans()).map(
        lambda drawn: {**drawn[0], **({OPAQUE.encode(): OPAQUE} if drawn[1] else {})}
    )


def top(depth: int) -> st.SearchStrategy[Tree]:
    return trees(depth).map(lambda tree: {n: v for n, v in tree.items() if v != OPAQUE})


def entries(tree: Tree, path: bytes = b"") -> list[TarEntry]:
    """Return the archive of a layer."""
    found = [entry(path, Kind.DIRECTORY)]
    if tree.get(OPAQUE.encode()) == OPAQUE:
        found[0].mark_opaque()
    for name, value in sorted(tree.items()):
        below = path + b"/" * bool(path) + name
        if isinstance(value, dict):
            found += entries(value, below)
        elif value == WHITEOUT:
            found.append(entry(below, Kind.CHARACTER))
        elif value != OPAQUE:
            # Its owner stands for its content.
            found.append(entry(below, Kind.REGULAR, uid=len(value) + ord(value[0])))
    return found


def entry(path: bytes, kind: Kind, uid: int = 0, target: bytes = b"") -> TarEntry:
    return TarEntry(path, kind, 0o644, uid, 0, 0, target)


def shown(layers: list[list[TarEntry]]) -> dict[bytes, int | None]:
    """Return what an overlay of archives shows, lowest first: folders as None, files' owners."""
    view: dict[bytes, int | None] = {}
    for layer in layers:
        for each in layer:
            if each.kind is Kind.DIRECTORY:
                if view.get(each.path, 0) is not None or each.is_opaque:
                    remove(view, each.path)
                view[each.path] = None
            else:
                remove(view, each.path)
                if not each.is_whiteout:
                    view[each.path] = each.uid
    return view


def remove(view: dict[bytes, int | None], path: bytes) -> None:
    for known in [known for known in view if known == path or known.startswith(path + b"/")]:
        del view[known]


def merged(layers: list[list[TarEntry]]) -> list[TarEntry]:
    merge = Merge()
    top_first = list(reversed(layers))
    for layer in top_first:
        merge.add(layer)
    merge.finish()
    selected = [
        merge.select(number, each) for number, layer in enumerate(top_first) for each in layer
    ]
    return [each for each in selected if each is not None]


@given(top(3), st.lists(top(3), min_size=1, max_size=4))
def test_a_merged_layer_does_what_its_layers_did_together(base, layers):
    below = [each for each in entries(base) if not each.is_whiteout]
    expected = shown([below, *(entries(layer) for layer in layers)])
    found = merged([entries(layer) for layer in layers])
    assert shown([below, in_order(found)]) == expected
    assert len({each.path for each in found}) == len(found)


@given(st.lists(top(3), min_size=1, max_size=4))
def test_no_whiteout_stays_where_an_overlay_would_show_it(layers):
    found = merged([entries(layer) for layer in layers])
    opaque = [each.path for each in found if each.is_opaque]
    for each in found:
        if each.is_whiteout:
            assert not any(each.path.startswith(path + b"/") for path in opaque)


def in_order(found: list[TarEntry]) -> list[TarEntry]:
    return sorted(found, key=lambda each: each.path.count(b"/") if each.path else -1)


def test_a_hard_link_outlives_the_name_that_had_the_content():
    root = entry(b"", Kind.DIRECTORY)
    low = [
        root,
        entry(b"first", Kind.REGULAR, uid=7),
        entry(b"second", Kind.HARD_LINK, target=b"first"),
        entry(b"third", Kind.HARD_LINK, target=b"first"),
    ]
    high = [entry(b"", Kind.DIRECTORY), entry(b"first", Kind.CHARACTER)]
    found = {each.path: each for each in merged([low, high])}
    assert found[b"first"].is_whiteout
    assert (found[b"second"].kind, found[b"second"].uid) == (Kind.REGULAR, 7)
    assert (found[b"third"].kind, found[b"third"].target) == (Kind.HARD_LINK, b"second")
    assert len(found) == 4
