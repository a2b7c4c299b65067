"""The journal is read whole and in order, while its ring turns and with whatever a crash left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.guest import journal
from magsd.guest.journal import JournalReader, append_note
from tests.unit.guest.journal_writer import HEADER, SEGMENT, JournalWriter, record


@pytest.fixture
def writer(tmp_path):
    return JournalWriter(tmp_path)


def read_all(directory, position=0, limit_bytes=1 << 20):
    reader = JournalReader(directory)
    records = []
    while True:
        some, position = reader.read(position, limit_bytes)
        if not some:
            return records, position
        records += some


def seen(records):
    return [(one.position, one.payload) for one in records]


def test_no_journal_is_an_empty_one(tmp_path):
    reader = JournalReader(tmp_path / "nowhere")
    assert reader.read(0) == ([], 0)
    assert reader.end() == 0


def test_fields_of_a_record(writer):
    end = writer.add(b"payload", channel=2, kind=1, stream=9, offset=1 << 40, at_ns=77)
    assert end == HEADER + 24 + 7
    ((one,), position) = JournalReader(writer.directory).read(0)
    assert one == (2, 1, 9, 1 << 40, 77, b"payload", end)
    assert one.position == HEADER
    assert position == end == JournalReader(writer.directory).end()


@given(st.lists(st.integers(0, 300_000), max_size=25), st.integers(1, 1 << 21))
def test_whatever_is_written_is_read(tmp_path_factory, sizes, limit_bytes):
    writer = JournalWriter(tmp_path_factory.mktemp("journal"))
    for index, size in enumerate(sizes):
        writer.add(bytes([index]) * size)
    records, position = read_all(writer.directory, 0, limit_bytes)
    assert seen(records) == writer.written
    assert position == JournalReader(writer.directory).end()


def test_a_small_limit_still_brings_a_whole_record(writer):
    writer.add(bytes(100_000))
    writer.add(b"second")
    some, _ = JournalReader(writer.directory).read(0, 1)
    assert [len(one.payload) for one in some] == [100_000]


def test_reading_goes_on_where_it_stopped(writer):
    end = writer.add(b"first")
    reader = JournalReader(writer.directory)
    assert reader.read(end) == ([], end)
    writer.add(b"second")
    (one,), position = reader.read(end)
    assert one.payload == b"second"
    assert reader.read(position) == ([], position)


def test_a_segment_that_is_full_to_the_last_byte(writer):
    end = writer.add(bytes(SEGMENT - HEADER - 24))
    assert end == SEGMENT
    reader = JournalReader(writer.directory)
    assert reader.end() == end
    assert reader.read(end) == ([], end)
    writer.add(b"next")
    (one,), _ = reader.read(end)
    assert (one.position, one.payload) == (SEGMENT + HEADER, b"next")


def test_the_first_segment_and_the_last_sixteen_are_kept(writer):
    writer.fill(40)
    records, position = read_all(writer.directory)
    kept = [one for one in writer.written if one[0] // SEGMENT in (0, *range(24, 40))]
    assert seen(records) == kept
    assert position == JournalReader(writer.directory).end()


def test_a_reader_that_the_ring_has_passed_goes_on_at_the_oldest_kept(writer):
    writer.fill(3)
    behind = writer.written[-1][0]
    writer.fill(30)
    (first, *_), _ = JournalReader(writer.directory).read(behind)
    assert first.position == (writer.number - 15) * SEGMENT + HEADER


def test_while_a_segment_is_being_replaced_it_is_not_there(writer):
    writer.fill(20)
    before_cut = JournalReader(writer.directory).end()
    writer.cut()
    reader = JournalReader(writer.directory)
    assert reader.end() == before_cut
    assert reader.read(before_cut) == ([], before_cut)
    lost = writer.number - 16
    (first, *_), _ = reader.read(lost * SEGMENT + HEADER)
    assert first.position == (lost + 1) * SEGMENT + HEADER
    numbers = {one.position // SEGMENT for one in read_all(writer.directory)[0]}
    assert numbers == {0, *range(lost + 1, writer.number)}


def test_a_segment_without_a_record_yet(writer):
    end = writer.add(b"last of its segment")
    writer.begin()
    reader = JournalReader(writer.directory)
    records, position = reader.read(end)
    assert (records, position) == ([], SEGMENT + HEADER)
    assert reader.end() == position


def test_a_segment_replaced_between_the_two_looks_is_not_believed(writer, monkeypatch):
    """The ring comes round to the very segment whose records are being read."""
    writer.fill(2)
    at = SEGMENT + HEADER
    pread = journal.os.pread

    def overtaken(descriptor, length, offset):
        data = pread(descriptor, length, offset)
        if offset == at % SEGMENT:
            monkeypatch.setattr(journal.os, "pread", pread)
            writer.fill(20)
        return data

    monkeypatch.setattr(journal.os, "pread", overtaken)
    (first, *_), _ = JournalReader(writer.directory).read(at)
    assert first.position == (writer.number - 15) * SEGMENT + HEADER
    assert (first.position, first.payload) in writer.written


def test_a_segment_with_a_successor_is_read_to_its_end_first(writer, monkeypatch):
    """What is appended, and the next segment begun, after the reader looked for a next one."""
    end = writer.add(b"old")
    real_open = journal.os.open

    def late(path, flags):
        try:
            return real_open(path, flags)
        except FileNotFoundError:
            monkeypatch.setattr(journal.os, "open", real_open)
            writer.add(b"appended meanwhile")
            writer.begin()
            writer.add(b"in the next")
            raise

    monkeypatch.setattr(journal.os, "open", late)
    records, _ = read_all(writer.directory, end)
    assert [one.payload for one in records] == [b"appended meanwhile", b"in the next"]


torn_tails = st.one_of(
    st.integers(0, 33).map(lambda length: record(b"torn away!")[:length]),
    st.just(bytes(64)),
    st.just(record(b"x", channel=0)),
    st.just(record(b"x", channel=4)),
    st.just(record(b"x", kind=9)),
)


@given(torn_tails)
def test_what_a_crash_left_is_not_a_record(tmp_path_factory, tail):
    writer = JournalWriter(tmp_path_factory.mktemp("journal"))
    end = writer.add(b"whole")
    writer.raw(tail)
    reader = JournalReader(writer.directory)
    records, position = reader.read(0)
    assert [one.payload for one in records] == [b"whole"]
    assert reader.read(position) == ([], end)
    assert reader.end() == end
    writer.begin()
    writer.add(b"after")
    (one,), _ = reader.read(end)
    assert one.payload == b"after"


@given(st.integers(0, 1 << 63))
def test_any_position_may_be_asked_for(tmp_path_factory, position):
    writer = JournalWriter(tmp_path_factory.mktemp("journal"))
    writer.add(b"one")
    writer.begin()
    writer.add(b"two")
    records, _ = read_all(writer.directory, position)
    assert {one.payload for one in records} <= {b"one", b"two"}


def test_notes_make_the_journal_and_are_followed_by_the_shim(tmp_path):
    end = append_note(tmp_path, "made ready", 5)
    (note,), position = JournalReader(tmp_path).read(0)
    assert note == (3, 1, 0, 0, 5, b"made ready\n", end)
    assert position == end
    writer = JournalWriter(tmp_path, number=0, length=end)
    writer.add(b"output")
    last = append_note(tmp_path, "it is over", 6)
    payloads = [one.payload for one in read_all(tmp_path)[0]]
    assert payloads == [b"made ready\n", b"output", b"it is over\n"]
    assert JournalReader(tmp_path).end() == last


@given(torn_tails)
def test_a_note_cuts_off_what_a_crash_left(tmp_path_factory, tail):
    writer = JournalWriter(tmp_path_factory.mktemp("journal"))
    writer.add(b"whole")
    writer.raw(tail)
    append_note(writer.directory, "the shim was lost", 1)
    payloads = [one.payload for one in read_all(writer.directory)[0]]
    assert payloads == [b"whole", b"the shim was lost\n"]


@pytest.mark.parametrize("left", [0, 1, 24, 40])
def test_a_note_that_does_not_fit_begins_the_next_segment(writer, left):
    writer.fill(17)
    writer.begin()
    writer.add(bytes(SEGMENT - HEADER - 24 - left))
    expected = (writer.number + 1) * SEGMENT + HEADER
    append_note(writer.directory, "a note of some length", 1)
    *_, note = read_all(writer.directory)[0]
    assert (note.position, note.payload) == (expected, b"a note of some length\n")


def test_files_made_but_not_written_are_no_journal(tmp_path):
    for name in ("head", *range(16)):
        (tmp_path / f"journal.{name}").write_bytes(b"")
    assert JournalReader(tmp_path).read(0) == ([], 0)
    append_note(tmp_path, "x" * 100_000, 1)
    (note,), _ = JournalReader(tmp_path).read(0)
    assert len(note.payload) == 64 * 1024 + 1
