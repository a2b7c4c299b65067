"""Frames and fields: what is written is read back, and nothing but WireError comes of garbage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.guest.wire import (
    HEADER_BYTES,
    PAYLOAD_MAX,
    Channel,
    Frame,
    FrameReader,
    Kind,
    WireError,
    encode,
    pack_fields,
    parse_fields,
)

frames = st.builds(
    Frame,
    kind=st.sampled_from(Kind),
    stream=st.integers(0, 2**32 - 1),
    channel=st.sampled_from(Channel),
    value=st.integers(0, 2**64 - 1),
    payload=st.binary(max_size=300),
)
no_nul = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
texts = st.text(no_nul, max_size=20)
names = st.text(
    st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=10
)


def header(length=0, stream=0, kind=3, channel=0, zero=0, zeros=0, value=0):
    parts = [(length, 4), (stream, 4), (kind, 1), (channel, 1), (zero, 2), (zeros, 4), (value, 8)]
    return b"".join(number.to_bytes(size, "little") for number, size in parts)


@given(frames)
def test_a_frame_is_laid_out_as_documented(frame):
    expected = header(
        len(frame.payload), frame.stream, frame.kind, frame.channel, value=frame.value
    )
    assert encode(frame) == expected + frame.payload


@given(st.lists(frames, max_size=5), st.data())
def test_any_split_gives_the_same_frames(sent, data):
    whole = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    reader = FrameReader()
    received = []
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        received += reader.feed(whole[begin:end])
    assert received == sent


def test_byte_by_byte_a_frame_comes_with_its_last():
    frame = Frame(Kind.DATA, 7, Channel.ERR, 2**63, b"payload")
    reader = FrameReader()
    *first, last = (reader.feed(bytes([byte])) for byte in encode(frame))
    assert not any(first)
    assert last == [frame]


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_garbage_raises_only_wire_error_and_goes_on_doing_so(pieces):
    reader = FrameReader()
    is_broken = False
    for piece in pieces:
        try:
            reader.feed(piece)
            assert not is_broken
        except WireError:
            is_broken = True


def frames_before_a_break(pieces):
    """Return what is received, and whether the sequence turned out to be none of frames."""
    reader, received = FrameReader(), []
    for piece in pieces:
        try:
            received += reader.feed(piece)
        except WireError:
            return received, True
        assert len(reader._rest) < HEADER_BYTES + PAYLOAD_MAX
    return received, False


@given(st.lists(frames, min_size=1, max_size=4), st.binary(max_size=40), st.data())
def test_damage_anywhere_is_found_at_the_same_place_however_it_is_split(sent, tail, data):
    """Bytes are changed and put in, as by a peer that has lost its place."""
    whole = bytearray(b"".join(map(encode, sent)))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    at = data.draw(st.integers(0, len(whole)))
    whole[at:at] = tail
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [
        bytes(whole[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)
    ]
    exact, is_broken = frames_before_a_break(bytes([byte]) for byte in whole)
    received, is_found = frames_before_a_break(pieces)
    assert is_found == is_broken
    # A break takes with it the whole frames of its own piece, and nothing else.
    assert received == exact[: len(received)]
    assert is_broken or received == exact
    for frame in exact:
        assert encode(frame) in whole


@pytest.mark.parametrize(
    "bad",
    [
        header(kind=0),
        header(kind=11),
        header(channel=3),
        header(length=PAYLOAD_MAX + 1),
        header(zero=1),
        header(zeros=1 << 31),
    ],
)
def test_what_is_no_frame_is_refused_before_its_payload(bad):
    reader = FrameReader()
    with pytest.raises(WireError):
        reader.feed(bad)
    with pytest.raises(WireError, match="before"):
        reader.feed(encode(Frame(Kind.EOF, 1)))


def test_the_longest_payload_fits_and_one_more_byte_does_not():
    frame = Frame(Kind.DATA, 1, payload=bytes(PAYLOAD_MAX))
    assert len(encode(frame)) == HEADER_BYTES + PAYLOAD_MAX
    assert FrameReader().feed(encode(frame)) == [frame]
    with pytest.raises(ValueError, match="limit"):
        encode(frame._replace(payload=bytes(PAYLOAD_MAX + 1)))


@pytest.mark.parametrize("bad", [Frame(Kind.DATA, -1), Frame(Kind.DATA, 1, value=1 << 64)])
def test_numbers_out_of_range_cannot_be_sent(bad):
    with pytest.raises(ValueError, match="no frame"):
        encode(bad)


@given(st.lists(names, max_size=3), st.lists(st.tuples(names, texts), max_size=6))
def test_fields_are_read_as_written(words, pairs):
    fields = parse_fields(pack_fields(words, pairs))
    assert fields.words == tuple(words)
    assert fields.pairs == tuple(pairs)
    assert fields.word == (words[0] if words else "")
    for key, _ in pairs:
        values = [value for name, value in pairs if name == key]
        assert fields.all(key) == values
        assert fields.get(key) == values[0]


def test_fields_by_example():
    payload = pack_fields("exec", [("arg", "a=b"), ("env", "X=1"), ("env", "Y=")])
    assert payload == b"exec\0arg=a=b\0env=X=1\0env=Y=\0"
    fields = parse_fields(payload)
    assert fields.all("env") == ["X=1", "Y="]
    assert fields.get("none", "default") == "default"
    assert pack_fields("", [("vm", "x")]) == b"vm=x\0"
    assert pack_fields(("control", "stats")) == b"control\0stats\0"


@given(st.binary(max_size=200))
def test_hostile_fields_give_text_that_can_be_stored_or_wire_error(payload):
    try:
        fields = parse_fields(payload)
    except WireError:
        assert payload
        assert payload[-1] != 0
        return
    for text in (*fields.words, *(part for pair in fields.pairs for part in pair)):
        text.encode("utf-8")


@pytest.mark.parametrize(
    ("word", "pairs"),
    [
        ("a\0b", ()),
        ("a=b", ()),
        ("a", [("k", "v\0")]),
        ("a", [("k=", "v")]),
        ("a", [("", "v")]),
        ("a", [("k", "\ud800")]),
    ],
)
def test_what_would_be_read_as_something_else_cannot_be_packed(word, pairs):
    with pytest.raises(ValueError, match=r"."):
        pack_fields(word, pairs)


def test_a_file_name_that_is_not_utf_8_passes_as_it_is():
    assert pack_fields("read", [("path", b"\xff".decode("utf-8", "surrogateescape"))]) == (
        b"read\0path=\xff\0"
    )


@pytest.mark.parametrize("text", ["-1", "1e3", " 1", "²", "9" * 21, "0x1"])
def test_what_is_no_number_is_refused(text):
    fields = parse_fields(pack_fields("ok", [("out", text)]))
    with pytest.raises(WireError):
        fields.number("out")


def test_numbers():
    fields = parse_fields(pack_fields("ok", [("out", "18446744073709551615")]))
    assert fields.number("out") == 2**64 - 1
    assert fields.number("err", 7) == 7


@given(st.integers(0, 10**20 - 1))
def test_every_number_of_twenty_digits_is_read(number):
    fields = parse_fields(pack_fields("ok", [("out", str(number))]))
    assert fields.number("out") == number


@given(st.text(no_nul, min_size=1))
def test_text_is_a_number_or_a_wire_error(text):
    fields = parse_fields(pack_fields("ok", [("out", text)]))
    try:
        number = fields.number("out")
    except WireError:
        return
    assert str(number) == text.lstrip("0") or (number == 0 and set(text) == {"0"})


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6))
def test_fields_that_were_read_can_be_packed_again(texts):
    """What is no UTF-8 is replaced by the first reading, and stays as it is from then on."""
    payload = b"".join(text.replace(b"\0", b"?") + b"\0" for text in texts)
    once = parse_fields(payload)
    pairs = [pair for pair in once.pairs if pair[0]]
    words = [word for word in once.words if word]
    again = parse_fields(pack_fields(words, pairs))
    assert again.words == tuple(words)
    assert again.pairs == tuple(pairs)
