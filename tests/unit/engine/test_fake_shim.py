"""The shim of a pretended VM: verbs, durable streams and ends, without a socket."""

import pytest

from magsd.engine.fake.request import Bucket
from magsd.guest.journal import JournalReader
from magsd.guest.state import EndCode, read_state, read_stream
from magsd.guest.wire import Kind, WireError, pack_fields, parse_fields
from tests.unit.engine.fake_vm import T1, Daemon, Vm
from tests.unit.engine.fake_world import settled


@pytest.fixture
async def vm(tmp_path):
    vm = Vm(tmp_path)
    yield vm
    await vm.aclose()


async def test_a_vm_is_told_from_another(vm):
    daemon = Daemon(vm)
    assert "this is VM 00c0ffee, epoch 3" in daemon.ask("hello", version="1", vm="other")
    assert "epoch" in daemon.ask("hello", version="1", epoch="2")
    assert "speaks version 1" in daemon.ask("hello", version="2")
    assert daemon.ask("hello", version="1", vm="00c0ffee", epoch="3") == ""
    assert "unknown verb" in daemon.ask("dance")
    assert "first connection" in daemon.ask("start")
    assert "number" in daemon.ask("fence", deadline_ms="soon")
    assert sorted(path.name for path in vm.directory.iterdir()) == ["state"]


async def test_a_durable_stream_is_told_to_all(vm):
    first, second, silent = Daemon(vm), Daemon(vm), Daemon(vm)
    for daemon in (first, second):
        daemon.ask("hello", version="1")
    first.run("echo a; echo b >&2; exit 2")
    await settled()
    for daemon in (first, second):
        (ended,) = daemon.taken(Kind.EXIT)
        fields = parse_fields(ended.payload)
        assert (ended.value, fields.get("out"), fields.get("err")) == (2 << 8, "2", "2")
        told = [frame.value for frame in daemon.taken(Kind.DATA)]
        assert told[-1] == vm.shim.journal_end == JournalReader(vm.directory).end()
    assert silent.frames == []
    state = read_stream(vm.directory, 1)
    assert (state.is_over, state.wait_status, state.out_bytes) == (True, 2 << 8, 2)
    assert (vm.journal(), vm.journal(2)) == (b"a\n", b"b\n")
    # Asked again, nothing runs; who greets later is told at once.
    second.run("echo more")
    assert [frame.value for frame in second.taken(Kind.OPEN)] == [2]
    late = Daemon(vm)
    late.ask("hello", version="1")
    assert len(late.taken(Kind.EXIT)) == 1


async def test_who_takes_nothing_is_told_once(vm):
    daemon = Daemon(vm)
    daemon.ask("hello", version="1")
    daemon.is_full = True
    daemon.run("for i in 1 2 3; do echo $i; sleep 1; done; sleep 100")
    await vm.world.pass_time(5)
    assert daemon.taken(Kind.DATA) == []
    daemon.is_full = False
    daemon.client.tell_journal()
    daemon.client.tell_journal()
    assert [frame.value for frame in daemon.taken(Kind.DATA)] == [vm.shim.journal_end]


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (pack_fields("read", [("path", "/x")]), "can only be an exec"),
        (b"exec\0arg=true", "can only be an exec"),
        (pack_fields("exec", [("arg", "true"), ("stdin", "open")]), "has no input"),
    ],
)
async def test_a_durable_stream_that_is_refused(vm, payload, why):
    daemon = Daemon(vm)
    daemon.give(Kind.OPEN, 1, 1, 0, payload)
    (reset,) = daemon.taken(Kind.RESET)
    assert why in parse_fields(reset.payload).get("error")
    assert read_stream(vm.directory, 1) is None


async def test_one_that_the_agent_refuses(vm):
    daemon = Daemon(vm)
    daemon.ask("hello", version="1")
    daemon.give(Kind.OPEN, 1, 1, 0, pack_fields("exec"))
    await settled()
    assert [frame.value for frame in daemon.taken(Kind.EXIT)] == [127 << 8]
    assert b"refused inside" in vm.journal(3)


async def test_a_deadline(vm):
    daemon = Daemon(vm)
    daemon.ask("hello", version="1")
    daemon.run("trap '' TERM; sleep 100", deadline_ms=2000)
    await vm.world.pass_time(6.9)
    assert daemon.taken(Kind.EXIT) == []
    await vm.world.pass_time(0.2)
    (ended,) = daemon.taken(Kind.EXIT)
    assert ended.value == 9
    assert parse_fields(ended.payload).get("timed_out") == "1"
    assert not vm.ended


async def test_a_vm_that_does_not_take_the_deadline_ends(vm):
    daemon = Daemon(vm)
    daemon.ask("hello", version="1")
    daemon.run("fake hang", deadline_ms=2000)
    await vm.world.pass_time(11.9)
    assert not vm.ended
    await vm.world.pass_time(0.2)
    assert (vm.end, daemon.is_finished) == (EndCode.KILLED, True)
    assert "outlived its deadline" in read_state(vm.directory).detail
    state = read_stream(vm.directory, 1)
    assert (state.is_over, state.wait_status, state.has_timed_out) == (True, 9, True)


async def test_a_frozen_vm_begins_nothing(vm):
    daemon, other = Daemon(vm), Daemon(vm)
    assert daemon.ask("freeze", deadline_ms="60000") == ""
    assert "another request" in other.ask("freeze", deadline_ms="1")
    daemon.run("echo a")
    daemon.give(Kind.SIGNAL, 1, value=0)
    other.run("echo b", stream=T1)
    other.run("echo c", stream=T1 + 1)
    other.give(Kind.RESET, T1 + 1)
    await vm.world.pass_time(59)
    assert (vm.journal(), other.taken(Kind.DATA)) == (b"", [])
    await vm.world.pass_time(2)
    assert vm.journal() == b"a\n"
    assert [frame.payload for frame in other.taken(Kind.DATA)] == [b"b\n"]
    # And the end of who froze it thaws it.
    other.ask("freeze", deadline_ms="0")
    daemon.run("echo d", stream=2)
    await settled()
    assert vm.journal() == b"a\n"
    other.client.lost()
    await settled()
    assert vm.journal() == b"a\nd\n"


async def test_a_hold_and_a_claim_that_takes_its_time(tmp_path):
    vm = Vm(tmp_path, claim_s=3.0)
    holder, other = Daemon(vm), Daemon(vm)
    assert holder.ask("hold") == ""
    assert "another connection holds" in other.ask("hold")
    assert "does not hold" in other.ask("claim")
    holder.ask("freeze", deadline_ms="0")
    assert holder.ask("claim") == "no answer"
    await vm.world.pass_time(2)
    assert vm.shim.machine.is_still
    await vm.world.pass_time(2)
    assert len(holder.taken(Kind.REPLY)) == 1
    assert not vm.shim.machine.is_still
    holder.client.lost()
    assert not vm.ended
    other.ask("hold")
    other.client.lost()
    assert (vm.end, read_state(tmp_path).detail) == (EndCode.KILLED, "nobody claimed it")
    await vm.aclose()


async def test_a_scoped_connection(vm):
    daemon = Daemon(vm)
    assert daemon.ask("scope") == ""
    assert "streams only" in daemon.ask("thaw")
    daemon.run("echo a", stream=T1)
    await settled()
    assert len(daemon.taken(Kind.EXIT)) == 1
    with pytest.raises(WireError):
        daemon.run("echo a")


# --- output that is too much -----------------------------------------------------------------


async def test_a_flood_is_held_back(tmp_path):
    vm = Vm(tmp_path, log_rate_bytes=1 << 20, log_burst_bytes=2 << 20)
    daemon = Daemon(vm)
    daemon.ask("hello", version="1")
    daemon.run("flood 6000000; echo end")
    await settled()
    first = len(vm.journal())
    assert (1 << 20) < first < (3 << 20)
    daemon.run("echo quick", stream=T1)
    await settled()
    assert [frame.payload for frame in daemon.taken(Kind.DATA) if frame.stream] == [b"quick\n"]
    assert len(daemon.taken(Kind.EXIT)) == 1
    await vm.world.pass_time(1)
    assert first < len(vm.journal()) < first + (2 << 20)
    await vm.world.pass_time(5)
    (ended,) = daemon.taken(Kind.EXIT)
    assert parse_fields(ended.payload).get("out") == "6000004"
    daemon.run("flood 100000000", stream=2)
    await settled()
    daemon.give(Kind.SIGNAL, 2, value=15)
    await settled()
    assert [frame.value for frame in daemon.taken(Kind.EXIT)] == [15]
    await vm.aclose()


def test_a_bucket_without_a_rate_is_never_empty():
    bucket = Bucket(0, 1)
    bucket.take(1 << 40)
    assert bucket.wait_s(1.0) == 0


# --- ends ----------------------------------------------------------------------------------------


async def test_an_end_is_written_and_ends_all(vm):
    daemon = Daemon(vm)
    daemon.run("echo a; sleep 100")
    daemon.run("sleep 100", stream=T1)
    await settled()
    vm.shim.end(EndCode.FENCED, "late")
    vm.shim.end(EndCode.KILLED, "later")
    assert daemon.is_finished
    assert vm.ended == [vm.shim]
    state = read_state(vm.directory)
    assert (state.end, state.detail) == (EndCode.FENCED, "late")
    assert read_stream(vm.directory, 1).out_bytes == 2
    assert not read_stream(vm.directory, 1).is_over
    await settled()
    assert not vm.shim.machine.programs


async def test_a_shim_that_dies_writes_nothing(vm):
    daemon = Daemon(vm)
    daemon.run("fake shim_died")
    await settled()
    assert daemon.is_finished
    assert vm.end is EndCode.NONE


@pytest.mark.parametrize(("reason", "code"), [("out_of_memory", EndCode.OUT_OF_MEMORY),
                                              ("", EndCode.KILLED), ("moon", EndCode.KILLED)])  # fmt: skip
async def test_kill(vm, reason, code):
    Daemon(vm).ask("kill", reason=reason)
    assert vm.end is code


async def test_a_journal_that_cannot_be_written_ends_the_vm(vm):
    (vm.directory / "journal.head").mkdir()
    Daemon(vm).run("echo a")
    await settled()
    assert vm.end is EndCode.HOST_DISK_FULL
