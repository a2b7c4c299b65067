"""Forms with one file, in whatever pieces they come."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.api.multipart import FileForm
from magsd.model.errors import InvalidError

TYPE = "multipart/form-data; boundary=b"


def part(content, disposition='form-data; name="file"; filename="f.txt"', more=b""):
    head = f"Content-Disposition: {disposition}".encode()
    return b"--b\r\n" + head + b"\r\n" + more + b"\r\n" + content + b"\r\n"


def body(*parts):
    return b"".join(parts) + b"--b--\r\n"


def parsed(data, *, cuts=(), content_type=TYPE):
    form = FileForm(content_type)
    places = [0, *sorted(cuts), len(data)]
    pieces = []
    for start, end in pairwise(places):
        pieces += form.feed(data[start:end])
    return form.file_name(), b"".join(pieces)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20))
def test_a_file_is_what_was_sent_however_it_is_cut(content, cuts):
    assert parsed(body(part(content)), cuts=cuts) == ("f.txt", content)


@pytest.mark.parametrize("content", [b"\r\n--", b"\r\n--bb", b"--b", b"\r\n--b\r", b"\r", b""])
def test_what_looks_like_a_boundary_is_content(content):
    if b"\r\n--bb" in content:
        content = content.replace(b"bb", b"c")
    data = body(part(content))
    for cut in range(len(data)):
        assert parsed(data, cuts=[cut]) == ("f.txt", content)


def test_other_fields_are_passed_over():
    data = body(
        part(b"1", 'form-data; name="note"'),
        part(b"content", 'form-data; filename="n"; name="file"', b"Content-Type: text/plain\r\n"),
        part(b"2", 'form-data; name="other"; filename="o"'),
    )
    assert parsed(data) == ("n", b"content")


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="file"; filename="a/../\\"b\\".txt"', 'a/../"b".txt'),
        ('form-data; name="file"; filename="näh.txt"', "näh.txt"),
        ("form-data; name=file; filename=plain", "plain"),
        ('form-data; name="file"', ""),
    ],
)
def test_names_as_clients_write_them(disposition, name):
    assert parsed(body(part(b"x", disposition))) == (name, b"x")


@pytest.mark.parametrize(
    ("content_type", "why"),
    [
        ("", "not multipart"),
        ("application/json", "not multipart"),
        ("multipart/form-data", "not multipart"),
        ("multipart/form-data; boundary=", "not multipart"),
        ("multipart/mixed; boundary=b", "not multipart"),
        ("multipart/form-data; boundary=" + "b" * 300, "Boundary"),
    ],
)
def test_what_is_no_form_is_refused(content_type, why):
    with pytest.raises(InvalidError, match=why):
        parsed(body(part(b"x")), content_type=content_type)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "in the middle"),
        (b"--b--\r\n", "no file"),
        (part(b"x"), "in the middle"),
        (b"nothing like it", "not a valid"),
        (body(part(b"1", 'form-data; name="other"')), "no file"),
        (body(part(b"1"), part(b"2")), "several"),
        (body(part(b"1", more=b"X: " + b"y" * 9000 + b"\r\n")), "not a valid"),
        (body(part(b"1", more=b"X: y\r\n" * 100)), "not a valid"),
    ],
)
def test_forms_that_are_not_right_are_refused(data, why):
    with pytest.raises(InvalidError, match=why):
        parsed(data)


@given(st.binary(max_size=500))
def test_bytes_of_any_kind_are_a_form_or_refused(data):
    with suppress(InvalidError):
        parsed(data)
