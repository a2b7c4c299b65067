"""Bodies: their content and their ends, wherever what comes is cut."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.gateway.http_body import (
    BodyError,
    ChunkedReader,
    chunk,
    last_chunk,
    reader_of,
)
from magsd.gateway.http_flow import Body, Framing
from tests.unit.gateway.corpus import BAD_CHUNKS

pieces = st.lists(st.binary(min_size=1, max_size=50), max_size=8)
LENGTH = Body(Framing.LENGTH, 5)


def fed(reader, data, size):
    """Return the content of `data`, which comes `size` bytes at a time, and what follows it."""
    content = b""
    for at in range(0, len(data), size):
        content += reader.feed(data[at : at + size])
        if reader.is_done:
            return content, reader.rest + data[at + size :]
    return content, None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("data", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_chunks_that_are_none(data, size):
    reader = ChunkedReader()

    def read():
        fed(reader, data, size)
        reader.end()

    with pytest.raises(BodyError):
        read()


@given(pieces, st.integers(1, 40), st.binary(max_size=20))
def test_chunks_come_out_again(content, size, rest):
    data = b"".join(map(chunk, content)) + last_chunk([(b"X", b"y"), (b"Z", b"")])
    reader = ChunkedReader()
    assert fed(reader, data + rest, size) == (b"".join(content), rest)
    assert reader.trailers == [(b"X", b"y"), (b"Z", b"")]


@given(st.integers(0, 9), st.integers(1, 20))
def test_a_body_with_a_length(more, size):
    assert fed(reader_of(LENGTH), b"hello" + b"!" * more, size) == (b"hello", b"!" * more)


@pytest.mark.parametrize("body", [LENGTH, Body(Framing.CHUNKED)])
def test_a_body_that_breaks_off(body):
    reader = reader_of(body)
    reader.feed(b"4\r\n")
    with pytest.raises(BodyError):
        reader.end()


def test_a_body_until_the_end():
    reader = reader_of(Body(Framing.UNTIL_END))
    assert reader.feed(b"0\r\n\r\n") == b"0\r\n\r\n"
    assert not reader.is_done
    reader.end()
    assert reader.is_done


@pytest.mark.parametrize("body", [Body(Framing.NONE), Body(Framing.LENGTH, 0)])
def test_no_body(body):
    assert reader_of(body).is_done


def test_extensions_are_dropped():
    assert fed(ChunkedReader(), b'5;a="b;c"\r\nhello\r\n0;d\r\n\r\n', 3) == (b"hello", b"")


@given(
    st.lists(
        st.sampled_from([b"0", b"1", b"a", b"5", b"\r\n", b"\r", b"\n", b";", b" ", b"X: y", b":"]),
        max_size=14,
    )
)
def test_what_is_taken_is_what_another_parser_takes(parts):
    """Stricter it may be, but it sees no other content and no other end."""
    data = b"".join(parts)
    reader = ChunkedReader()
    try:
        content, rest = fed(reader, data, max(len(data), 1)) if data else (b"", None)
    except BodyError:
        return
    other = h11.Connection(h11.SERVER)
    other.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    assert isinstance(other.next_event(), h11.Request)
    theirs = b""
    while isinstance(event := other.next_event(), h11.Data):
        theirs += event.data
    assert theirs == content
    assert isinstance(event, h11.EndOfMessage) == reader.is_done
    if reader.is_done:
        assert bytes(other.trailing_data[0]) == rest
