"""Both forms in which apt's sources are written, and the questions asked of them."""

import pytest

from magsd.storage import apt_sources
from magsd.storage.apt_sources import Source


@pytest.fixture
def etc_apt(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_lines_are_read(etc_apt):
    (etc_apt / "sources.list").write_text(
        "# a comment\n"
        "deb http://mirror/debian bookworm main contrib # and why\n"
        "deb-src http://mirror/debian bookworm main\n"
        "deb [arch=amd64,arm64 signed-by=/k.gpg trusted=yes] http://other bookworm-security main\n"
        "deb cdrom:[disc]/ bookworm main\n"
        "deb http://flat ./\n"
        "deb\n"
    )

    assert apt_sources.read_sources(etc_apt) == [
        Source("http://mirror/debian", "bookworm", ("main", "contrib")),
        Source(
            "http://other",
            "bookworm-security",
            ("main",),
            (("Architectures", "amd64 arm64"), ("Signed-By", "/k.gpg"), ("Trusted", "yes")),
        ),
        Source("http://flat", "./", ()),
    ]


def test_stanzas_are_read(etc_apt):
    (etc_apt / "sources.list.d/debian.sources").write_text(
        "# the release\n"
        "Types: deb deb-src\n"
        "URIs: http://one http://two\n"
        "Suites: bookworm bookworm-updates\n"
        "Components: main\n"
        "Signed-By:\n"
        " -----BEGIN PGP-----\n"
        " abc\n"
        "\n"
        "Types: deb\n"
        "URIs: http://off\n"
        "Suites: bookworm\n"
        "Enabled: no\n"
        "\n"
        "Types: deb-src\n"
        "URIs: http://source\n"
        "Suites: bookworm\n"
    )
    (etc_apt / "sources.list.d/notes.txt").write_text("deb http://ignored bookworm main\n")

    found = apt_sources.read_sources(etc_apt)

    assert [(source.uri, source.suite) for source in found] == [
        ("http://one", "bookworm"),
        ("http://one", "bookworm-updates"),
        ("http://two", "bookworm"),
        ("http://two", "bookworm-updates"),
    ]
    assert found[0].fields == (("Signed-By", "\n -----BEGIN PGP-----\n abc"),)


def test_what_is_written_is_read_back(etc_apt):
    sources = [
        Source("http://one", "bookworm", ("main", "contrib"), (("Signed-By", "/k.gpg"),)),
        Source("http://flat", "./", ()),
    ]
    text = "".join(source.stanza() for source in sources)
    (etc_apt / "sources.list.d/own.sources").write_text(text)

    assert apt_sources.read_sources(etc_apt) == sources


def test_a_machine_without_sources_has_none(tmp_path):
    assert apt_sources.read_sources(tmp_path / "absent") == []


def test_a_release_is_itself_its_updates_and_its_security():
    suites = ["bookworm", "bookworm-updates", "bookworm-security", "bookworm-backports", "sid"]
    sources = [Source("http://one", suite, ("main",)) for suite in suites]

    found = apt_sources.of_release(sources, "bookworm")

    assert [source.suite for source in found] == suites[:3]


def test_backports_stand_beside_the_release():
    sources = [
        Source("http://security", "bookworm-security", ("main",)),
        Source("http://one", "bookworm", ("main", "contrib"), (("Trusted", "yes"),)),
    ]

    assert apt_sources.backports(sources, "bookworm") == Source(
        "http://one", "bookworm-backports", ("main",), (("Trusted", "yes"),)
    )
    assert apt_sources.backports(sources, "trixie") is None
