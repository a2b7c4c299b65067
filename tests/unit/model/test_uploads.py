"""Names of uploads, and what files a job may have beside each other."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from magsd.model.errors import InvalidError
from magsd.model.names import new_file_id
from magsd.model.uploads import NAME_MAX_BYTES, UploadedFile, check_together, safe_name


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("data.csv", "data.csv"),
        ("/etc/passwd", "passwd"),
        ("../../etc/shadow", "shadow"),
        ("C:\\Users\\me\\a b.txt", "a b.txt"),
        ("folder/", "folder"),
        (".profile", ".profile"),
        ("naïve 雪.txt", "naïve 雪.txt"),
        ("a\nb\0c\x1b[m", "a_b_c_[m"),
        ("\ud800", "_"),
        ("", "file"),
        (" ", "file"),
        ("/", "file"),
        ("..", "file"),
        ("a/..", "file"),
    ],
)
def test_a_name_is_the_last_element_of_a_path(given_name, name):
    assert safe_name(given_name) == name


@given(st.text())
@example("é" * 200 + ".tar.gz")
@example("x." + "y" * 300)
def test_any_name_becomes_one_that_a_file_can_have(name):
    made = safe_name(name)
    assert 1 <= len(made.encode()) <= NAME_MAX_BYTES
    assert made not in (".", "..")
    assert made.isprintable()
    assert not {"/", "\\"} & set(made)
    assert safe_name(made) == made


def test_what_is_too_long_keeps_its_suffix():
    assert safe_name("é" * 200 + ".csv") == "é" * 125 + ".csv"


def file(name, size_bytes=1):
    return UploadedFile(new_file_id(), name, size_bytes, "0" * 64)


def test_two_files_cannot_have_one_name():
    check_together([file("a"), file("b")], 1)
    with pytest.raises(InvalidError, match="two of them are called 'a'"):
        check_together([file("a"), file("b"), file("a")], 1)


def test_files_must_fit_the_disk():
    check_together([file("a", 1 << 29), file("b", 1 << 29)], 1)
    with pytest.raises(InvalidError, match="disk_gb"):
        check_together([file("a", 1 << 29), file("b", (1 << 29) + 1)], 1)
