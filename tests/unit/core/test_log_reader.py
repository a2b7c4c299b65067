"""Steps along a journal: the same lines however large the steps are, and wherever one goes on."""

import dataclasses
import random
import shutil
from datetime import UTC, datetime

import pytest

from magsd.core.log_places import LogPlaces
from magsd.core.log_reader import LogReader, first_place
from magsd.model.lifecycle import RunState
from magsd.model.names import RequestId, RunId, VmId
from magsd.model.records import LogSource, Run
from tests.unit.guest.journal_writer import JournalWriter

JOB, VM = RequestId("job"), VmId("0123abcd")
RUN = Run(RunId("run"), JOB, 1, RunState.RUNNING, "gvisor", "kernel", datetime.now(UTC), vm_id=VM)
ENDED = dataclasses.replace(RUN, state=RunState.ENDED)


@pytest.fixture
def places(tmp_path):
    return LogPlaces(tmp_path)


@pytest.fixture
def reader(places):
    return LogReader(places, JOB)


@pytest.fixture
def journal(places):
    return JournalWriter(places.make_run_directory(VM))


def walked(reader, run=ENDED, place=None, **limits):
    """Return what lies between `place` and the end, and each place that was come to."""
    place = place or first_place()
    entries, stops = [], [(0, place)]
    while (found := reader.step(place, run, **limits)) is not None:
        entries += found.entries
        place = found.end
        stops.append((len(entries), place))
    return entries, stops


def mixed(journal, random_, records):
    """Write lines, long lines, blank ones and halves of several streams, all mixed."""
    offsets = {}
    for _ in range(records):
        key = random_.choice([(1, 1), (1, 2), (2, 1)])
        text = random_.choice(
            [
                b"\n" * random_.randrange(1, 3000),
                b"x" * random_.randrange(1, 65_000),
                b"".join(b"%d\n" % n for n in range(random_.randrange(500))) + b"half",
                b"half",
                "ä".encode() * 30_000 + b"\n",
            ]
        )[:65_536]
        offset = offsets.get(key, 0)
        journal.add(text, stream=key[0], channel=key[1], offset=offset)
        offsets[key] = offset + len(text)
        if random_.random() < 0.1:
            journal.add(b"a system line\n", channel=3, stream=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_lines_are_the_same_however_large_the_steps(reader, journal, seed):
    random_ = random.Random(seed)
    mixed(journal, random_, 60)
    expected, _ = walked(reader)
    seqs = [entry.seq for entry in expected]
    assert seqs == sorted(set(seqs))
    for lines, bytes_ in ((7, 1), (500, 65_536), (7000, 100), (50, 1 << 20)):
        entries, stops = walked(reader, lines=lines, bytes_=bytes_)
        assert entries == expected
        for count, place in random_.sample(stops, min(3, len(stops))):
            assert walked(reader, place=place)[0] == expected[count:]
            assert walked(reader, place=place, lines=130)[0] == expected[count:]


def test_a_step_has_few_lines_even_of_a_record_with_many(reader, journal):
    journal.add(b"\n" * 65_536)
    place, counts = first_place(), []
    while (found := reader.step(place, ENDED, lines=500)) is not None:
        counts.append(len(found.entries))
        place = found.end
    assert sum(counts) == 65_536
    assert max(counts) <= 1024


def test_what_grows_is_read_on_from_the_middle_of_a_record(reader, journal):
    journal.add(b"1\n" * 3000, offset=0)
    place, seen = first_place(), 0
    while (found := reader.step(place, RUN, lines=700)) is not None:
        seen += len(found.entries)
        place = found.end
        if seen == 1024:
            journal.add(b"2\n" * 3000, offset=6000)
    assert seen == 6000


def test_a_ring_that_passes_the_middle_of_a_record_loses_whole_records(reader, journal):
    journal.begin()  # what is first is kept for good
    journal.begin()
    journal.add(b"1\n" * 3000)
    found = reader.step(first_place(), RUN, lines=700)
    assert found.end.inner
    journal.fill(17)
    journal.add(b"2\n" * 3000, offset=1 << 20)
    entries, _ = walked(reader, RUN, found.end)
    assert [entry.text for entry in entries[-3000:]] == [b"2"] * 3000
    assert entries[-3001].source is LogSource.SYSTEM
    whole, _ = walked(reader, RUN)
    assert [entry.text for entry in entries[-4000:]] == [entry.text for entry in whole[-4000:]]


def test_the_end_of_one_journal_is_followed_by_the_next(places, journal):
    journal.add(b"one\nhalf", offset=0)
    places.put_away(JOB, 1, VM)
    last = VmId("00000002")
    JournalWriter(places.make_run_directory(last)).add(b"two\n")
    reader = LogReader(places, JOB)
    run = dataclasses.replace(ENDED, epoch=2, vm_id=last)
    entries, _ = walked(reader, run, lines=1)
    assert [entry.text for entry in entries] == [b"one", b"half", b"two"]
    assert walked(reader, run)[0] == entries
    shutil.rmtree(places.run_directory(last))
    assert [entry.text for entry in walked(reader, run)[0]] == [b"one", b"half"]


@pytest.mark.parametrize("source", [None, LogSource.STDERR])
def test_near_the_end_there_are_enough_lines(reader, journal, source):
    for number in range(300):
        journal.add(b"%d\n" % number * 50, channel=1 + number % 2, offset=number // 2 * 10_000)
    place, has_more = reader.near_end(first_place(), ENDED, source, 1000)
    left = [e for e in walked(reader, place=place)[0] if source in (None, e.source)]
    everything = [e for e in walked(reader)[0] if source in (None, e.source)]
    assert has_more
    assert len(left) >= 1000
    assert everything[-len(left) :] == left
