"""Text cut anywhere: in the middle of a character, of a line and of the longest line; and noise."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from magsd.core.log_lines import LINE_MAX, Assembler
from magsd.guest.journal import Record
from magsd.guest.wire import pack_fields

OUT, ERR = 1, 2
HEADER_BYTES = 24
RECORD_MAX = 60_000

letters = st.sampled_from(["a", "\u00e9", "\u4e2d", "\U0001f600", "\r", "\0", "\u2028", "\ufffd"])
texts = st.lists(
    st.one_of(
        st.text(letters, max_size=12),
        # Lines about as long as they may be, with a character across the limit.
        st.builds(
            lambda lead, letter, more: "x" * (LINE_MAX - 4 + lead) + letter * 3 + "y" * more,
            st.integers(0, 5),
            letters,
            st.integers(0, 5),
        ),
        st.builds(lambda letter: letter * (LINE_MAX // 2 + 1), letters),
    ),
    max_size=4,
)
cuts = st.lists(st.one_of(st.integers(1, 6), st.integers(1, RECORD_MAX)), max_size=40)


def pieces_of(data, lengths):
    for length in lengths:
        if data:
            yield data[:length]
            data = data[length:]
    for at in range(0, len(data), RECORD_MAX):
        yield data[at : at + RECORD_MAX]


def journal_of(channels):
    """Return the records for pieces of text by channel, taken in turn, and the exit."""
    position, offsets, records = 16, dict.fromkeys(channels, 0), []
    waiting = {channel: list(pieces) for channel, pieces in channels.items()}
    while any(waiting.values()):
        for channel, pieces in waiting.items():
            if pieces:
                payload = pieces.pop(0)
                position += HEADER_BYTES + len(payload)
                at_ns = len(records)
                offset = offsets[channel]
                records.append(Record(channel, 1, 1, offset, at_ns, payload, position))
                offsets[channel] += len(payload)
    payload = pack_fields(
        "", [("status", "0"), ("out", str(offsets.get(OUT, 0))), ("err", str(offsets.get(ERR, 0)))]
    )
    position += HEADER_BYTES + len(payload)
    return [*records, Record(OUT, 3, 1, 0, len(records), payload, position)]


def messages(records, channel):
    assembler = Assembler(1)
    entries = [entry for record in records for entry in assembler.feed(record)]
    assert assembler.held_bytes == 0
    return [entry.line().message for entry in entries if entry.channel == channel]


def expected(text):
    """Return the lines of `text` by the rule in words: as many whole characters as fit."""
    *lines, last = text.split("\n")
    for line in lines if not last else [*lines, last]:
        size = 0
        part = []
        for letter in line:
            size += len(letter.encode())
            if size > LINE_MAX:
                yield "".join(part)
                part, size = [], len(letter.encode())
            part.append(letter)
        if part or not line:
            yield "".join(part)


@settings(deadline=None, max_examples=60)
@given(texts, cuts, st.booleans())
@example(["x" * (LINE_MAX - 1) + "\u00e9"], [LINE_MAX], False)
@example(["\U0001f600" * (LINE_MAX // 4 + 1)], [1] * 10, True)
def test_no_cut_damages_a_character_or_moves_the_end_of_a_line(lines, lengths, has_end):
    text = "\n".join(lines) + ("\n" if lines and has_end else "")
    records = journal_of({OUT: pieces_of(text.encode(), lengths)})
    assert messages(records, OUT) == list(expected(text))


@settings(deadline=None, max_examples=40)
@given(texts, texts, cuts, cuts)
def test_two_channels_do_not_mix(out, err, of_out, of_err):
    both = {OUT: "\n".join(out), ERR: "\n".join(err)}
    records = journal_of(
        {
            OUT: pieces_of(both[OUT].encode(), of_out),
            ERR: pieces_of(both[ERR].encode(), of_err),
        }
    )
    for channel, text in both.items():
        assert messages(records, channel) == list(expected(text))


@settings(deadline=None)
@given(texts, cuts, st.integers(0, 40))
def test_who_skims_the_beginning_counts_and_ends_alike(lines, lengths, at):
    records = journal_of({OUT: pieces_of("\n".join(lines).encode(), lengths)})
    reader, skimmer = Assembler(1), Assembler(1)
    for record in records[:at]:
        assert skimmer.skim(record) == len(reader.feed(record))
        assert skimmer.held_bytes == reader.held_bytes <= LINE_MAX
    for record in records[at:]:
        assert skimmer.feed(record) == reader.feed(record)


noise = st.lists(
    st.builds(
        Record,
        channel=st.integers(1, 3),
        kind=st.integers(1, 3),
        stream=st.integers(0, 3),
        offset=st.one_of(st.integers(0, 99), st.integers(0, 2**64 - 1)),
        at_ns=st.integers(0, 2**64 - 1),
        payload=st.one_of(
            st.binary(max_size=20),
            st.integers(0, 2**70).map(lambda number: b"out=%d\0err=x\0" % number),
            st.just(b"out=-5\0err=" + b"9" * 5000 + b"\0"),
        ),
        end_position=st.just(0),
    ),
    max_size=12,
)


@given(noise)
def test_records_that_no_shim_writes_give_lines_all_the_same(records):
    """A damaged journal must not keep a job's log from being read."""
    position, assembler, skimmer = 16, Assembler(1), Assembler(1)
    for record in records:
        position += HEADER_BYTES + len(record.payload)
        record = record._replace(end_position=position)
        entries = assembler.feed(record)
        assert skimmer.skim(record) == len(entries)
        for entry in entries:
            assert "\n" not in entry.line().message or entry.channel == 3
            assert len(entry.text) <= LINE_MAX
    assert assembler.finish(position) == skimmer.finish(position)
