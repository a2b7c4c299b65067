"""Journals that are no journals: random bytes, damaged records, segments in the wrong file."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from magsd.guest.journal import JournalReader, append_note
from tests.unit.guest.journal_writer import HEADER, SEGMENT, record

NAMES = ["journal.head", *(f"journal.{number}" for number in range(16))]
RECORD_MIN = 24

numbers = st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1))
noise = st.binary(max_size=120)
records = st.builds(
    record,
    st.binary(max_size=30),
    channel=st.integers(0, 5),
    kind=st.integers(0, 5),
    stream=st.integers(0, 0xFFFF),
    offset=st.integers(0, 2**64 - 1),
    at_ns=st.integers(0, 2**64 - 1),
)
segments = st.one_of(
    noise,
    st.builds(
        lambda number, parts: b"MAGSJRN1" + struct.pack("<Q", number) + b"".join(parts),
        numbers,
        st.lists(st.one_of(records, noise), max_size=4),
    ),
)
directories = st.dictionaries(st.sampled_from(NAMES), segments, max_size=4)
positions = st.one_of(st.integers(0, 4 * SEGMENT), st.integers(0, 2**63))


def laid_out(tmp_path_factory, files):
    directory = tmp_path_factory.mktemp("noise")
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def read_from(directory, position, limit_bytes=1 << 20):
    """Return all records from `position` on; the reader must come to an end."""
    reader, found = JournalReader(directory), []
    # Each turn brings a record or ends; there are no more than the bytes can hold.
    for _ in range(17 * 200):
        some, after = reader.read(position, limit_bytes)
        assert after >= position
        if not some:
            return found, after
        assert after == some[-1].end_position > position
        found += some
        position = after
    raise AssertionError("the reader does not come to an end")


@settings(deadline=None)
@given(directories, positions, st.sampled_from([1, 64, 1 << 20]))
def test_nothing_but_records_is_read_and_reading_ends(tmp_path_factory, files, position, limit):
    directory = laid_out(tmp_path_factory, files)
    found, _ = read_from(directory, position, limit)
    places = [one.position for one in found]
    assert places == sorted(set(places))
    contents = list(files.values())
    for one in found:
        assert one.channel in (1, 2, 3)
        assert one.kind in (1, 2, 3)
        assert one.position % SEGMENT >= HEADER
        head = struct.pack("<IBBHQQ", len(one.payload), *one[:5])
        assert any(head + one.payload in content for content in contents)


@settings(deadline=None)
@given(directories)
def test_the_end_lies_where_records_end(tmp_path_factory, files):
    directory = laid_out(tmp_path_factory, files)
    end = JournalReader(directory).end()
    assert end >= 0
    found, _ = read_from(directory, end)
    assert not found


@settings(deadline=None)
@given(directories)
def test_a_note_finds_its_place_in_anything(tmp_path_factory, files):
    """After it there is a journal, whose last record is the note."""
    directory = laid_out(tmp_path_factory, files)
    end = append_note(directory, "the shim was lost", 5)
    assert JournalReader(directory).end() == end
    found, _ = read_from(directory, end - RECORD_MIN - len("the shim was lost\n"))
    assert [one.payload for one in found] == [b"the shim was lost\n"]
