"""From records to lines: the same lines however the bytes were cut, and losses told."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from magsd.core.log_lines import LINE_MAX, Assembler
from magsd.guest.journal import Record
from magsd.guest.wire import pack_fields
from magsd.model.records import LogSource

OUT, ERR, SYSTEM = 1, 2, 3
DATA, GAP, EXIT = 1, 2, 3
HEADER_BYTES = 24


class Journal:
    """Records one behind the other, as a shim writes them."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.position = 16
        self.offsets = {OUT: 0, ERR: 0}

    def add(self, channel: int, kind: int, payload: bytes, offset: int = 0) -> None:
        self.position += HEADER_BYTES + len(payload)
        self.records.append(
            Record(channel, kind, 1, offset, len(self.records), payload, self.position)
        )

    def data(self, channel: int, payload: bytes) -> None:
        self.add(channel, DATA, payload, self.offsets[channel])
        self.offsets[channel] += len(payload)

    def gap(self, channel: int, length: int) -> None:
        self.add(channel, GAP, struct.pack("<Q", length), self.offsets[channel])
        self.offsets[channel] += length

    def drop(self, channel: int, length: int) -> None:
        """Lose bytes without a record, as when the ring has come round."""
        self.offsets[channel] += length

    def note(self, text: bytes) -> None:
        self.add(SYSTEM, DATA, text)

    def exit(self) -> None:
        counts = [("out", str(self.offsets[OUT])), ("err", str(self.offsets[ERR]))]
        self.add(OUT, EXIT, pack_fields("", [("status", "0"), *counts, ("ended_ns", "1")]))

    def entries(self, *, is_over: bool = True):
        assembler = Assembler(1)
        found = [entry for record in self.records for entry in assembler.feed(record)]
        return found + (assembler.finish(self.position) if is_over else [])

    def texts(self) -> list[tuple[LogSource, bytes]]:
        return [(entry.source, entry.text) for entry in self.entries()]


lines = st.lists(
    st.one_of(
        st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"")),
        st.integers(0, 3).map(lambda n: b"x" * (LINE_MAX - 1 + n)),
    ),
    max_size=6,
)
cuts = st.lists(st.integers(1, 40_000), max_size=12)


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    pieces = []
    for length in lengths:
        piece, data = data[:length], data[length:]
        pieces += [piece] if piece else []
    return [*pieces, *(data[at : at + 60_000] for at in range(0, len(data), 60_000))]


@given(lines, cuts, cuts, st.booleans())
def test_any_cutting_gives_the_same_lines(texts, some, others, has_end):
    data = b"\n".join(texts) + (b"\n" if texts and has_end else b"")
    results = []
    for lengths in (some, others):
        journal = Journal()
        for piece in cut(data, lengths):
            journal.data(OUT, piece)
        journal.exit()
        results.append([entry.text for entry in journal.entries()])
    assert results[0] == results[1]
    assert all(len(text) <= LINE_MAX for text in results[0])
    assert b"".join(results[0]) == data.replace(b"\n", b"")


events = st.lists(
    st.one_of(
        st.tuples(st.just("data"), st.sampled_from([OUT, ERR]), st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("data"), st.sampled_from([OUT, ERR]), st.just(b"y" * LINE_MAX)),
        st.tuples(st.just("data"), st.sampled_from([OUT, ERR]), st.just(b"\n\n\n")),
        st.tuples(st.just("gap"), st.sampled_from([OUT, ERR]), st.integers(1, 9)),
        st.tuples(st.just("drop"), st.sampled_from([OUT, ERR]), st.integers(1, 9)),
        st.tuples(st.just("note"), st.just(b"a note")),
    ),
    max_size=30,
)


def played(script, *, exits: bool) -> Journal:
    journal = Journal()
    for name, *arguments in script:
        getattr(journal, name)(*arguments)
    if exits:
        journal.exit()
    return journal


@given(events, st.booleans())
def test_places_rise_and_nothing_is_lost_in_silence(script, exits):
    journal = played(script, exits=exits)
    entries = journal.entries()
    places = [entry.seq for entry in entries]
    assert places == sorted(set(places))
    for channel in (OUT, ERR):
        kept = b"".join(
            record.payload
            for record in journal.records
            if record.channel == channel and record.kind == DATA
        )
        shown = b"".join(entry.text for entry in entries if entry.channel == channel)
        assert shown == kept.replace(b"\n", b"")
        lost = sum(
            length
            for name, *rest in script
            if name in ("gap", "drop")
            for of, length in [rest]
            if of == channel
        )
        word = {OUT: b"stdout", ERR: b"stderr"}[channel]
        told = sum(
            int(entry.text.split()[0])
            for entry in entries
            if entry.channel == SYSTEM and word in entry.text
        )
        assert told == lost if exits else told <= lost


@given(events, st.integers(0, 30), st.sampled_from([None, *LogSource]))
def test_who_only_counts_comes_to_the_same_place(script, at, source):
    journal = played(script, exits=True)
    reader, skimmer = Assembler(1), Assembler(1)
    for record in journal.records[:at]:
        entries = reader.feed(record)
        count = sum(source in (None, entry.source) for entry in entries)
        assert skimmer.skim(record, source) == count
    for record in journal.records[at:]:
        assert skimmer.feed(record) == reader.feed(record)
    assert skimmer.finish(journal.position) == reader.finish(journal.position)


@given(events, st.integers(0, 30))
def test_who_goes_on_in_the_middle_sees_the_rest(script, at):
    journal = played(script, exits=True)
    first = Assembler(1)
    before = [entry for record in journal.records[:at] for entry in first.feed(record)]
    second = first.copied()
    for record in journal.records[at:]:
        first.feed(record)
    after = [entry for record in journal.records[at:] for entry in second.feed(record)]
    assert before + after == journal.entries(is_over=False)


def test_a_line_stands_where_it_ends():
    journal = Journal()
    journal.data(OUT, b"out begins, ")
    journal.data(ERR, b"err\n")
    journal.note(b"note")
    journal.data(OUT, b"out ends\nlast")
    journal.exit()
    assert journal.texts() == [
        (LogSource.STDERR, b"err"),
        (LogSource.SYSTEM, b"note"),
        (LogSource.STDOUT, b"out begins, out ends"),
        (LogSource.STDOUT, b"last"),
    ]
    assert [entry.seq for entry in journal.entries()][1] == journal.records[2].end_position


def test_a_long_line_is_not_split_within_a_character():
    journal = Journal()
    journal.data(OUT, b"x" * (LINE_MAX - 1))
    journal.data(OUT, "é!".encode())
    journal.data(OUT, b"\n")
    texts = [entry.line().message for entry in journal.entries()]
    assert texts == ["x" * (LINE_MAX - 1), "é!"]


def test_what_is_not_utf8_is_replaced():
    journal = Journal()
    journal.data(OUT, b"a\xffb\n")
    (entry,) = journal.entries()
    assert (entry.line().message, entry.line().level) == ("a\ufffdb", "info")


def test_a_loss_at_the_end_is_told():
    journal = Journal()
    journal.data(OUT, b"kept")
    journal.drop(OUT, 5)
    journal.drop(ERR, 7)
    journal.exit()
    assert journal.texts() == [
        (LogSource.STDOUT, b"kept"),
        (LogSource.SYSTEM, b"5 bytes of stdout are missing here: the log was full"),
        (LogSource.SYSTEM, b"7 bytes of stderr are missing here: the log was full"),
    ]


def test_an_exit_record_that_says_nothing_ends_the_lines():
    journal = Journal()
    journal.data(OUT, b"kept")
    journal.add(OUT, EXIT, b"no fields, but long enough")
    assert journal.texts() == [(LogSource.STDOUT, b"kept")]


def test_each_life_has_its_own_range_of_places():
    journal = Journal()
    journal.note(b"x")
    (first,), (second,) = (Assembler(epoch).feed(journal.records[0]) for epoch in (1, 2))
    assert second.seq - first.seq == 1 << 40


def test_a_line_that_the_end_of_its_vm_cut_off_is_not_joined_with_the_next_life():
    """A stream of the same number begins anew, and there was no time for an exit record."""
    journal = Journal()
    journal.data(OUT, b"whole\ncut o")
    journal.note(b"started from its own disk")
    journal.add(OUT, 1, b"anew\n")
    entries = journal.entries()
    assert [entry.text for entry in entries] == [
        b"whole",
        b"started from its own disk",
        b"cut o",
        b"anew",
    ]
    assert [entry.seq for entry in entries] == sorted({entry.seq for entry in entries})
