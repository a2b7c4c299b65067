"""The journal that a pretended VM's shim writes, read as the daemon reads it."""

from magsd.engine.fake.files import DATA, Journal
from magsd.guest.journal import SEGMENT_BYTES, JournalReader, append_note


def test_a_journal_goes_round(tmp_path):
    journal = Journal(tmp_path)
    assert journal.end == 0
    assert not list(tmp_path.iterdir())
    piece = bytes(range(256)) * 256
    count = 20 * SEGMENT_BYTES // len(piece)
    for number in range(count):
        journal.append(1, DATA, 1, number * len(piece), piece, number)
        if number % 50 == 0:
            journal.close()
    assert len(list(tmp_path.iterdir())) == 17
    reader, position, read = JournalReader(tmp_path), 0, []
    while True:
        records, position = reader.read(position)
        if not records:
            break
        read += records
    assert position == journal.end == reader.end()
    assert read[0].offset == 0
    last = b"".join(record.payload for record in read[-40:])
    start = read[-40].offset
    assert last == (piece * count)[start:]
    journal.close()
    # Another goes on where this one ended; what was cut off in the middle is gone.
    path = tmp_path / f"journal.{(position // SEGMENT_BYTES - 1) % 16}"
    with path.open("ab") as file:
        file.write(b"\xff" * 10)
    following = Journal(tmp_path)
    assert following.end == position
    following.append(3, DATA, 0, 0, b"more\n", 1)
    following.close()
    assert reader.read(position)[0][0].payload == b"more\n"


def test_a_journal_follows_the_daemons_own_lines(tmp_path):
    append_note(tmp_path, "waiting", 1)
    journal = Journal(tmp_path)
    journal.append(1, DATA, 1, 0, b"begun\n", 2)
    journal.append(1, DATA, 1, 6, b"", 2)
    journal.close()
    append_note(tmp_path, "ended", 3)
    records, _ = JournalReader(tmp_path).read(0)
    assert [r.payload for r in records] == [b"waiting\n", b"begun\n", b"", b"ended\n"]
