"""Transient streams of a pretended VM, and what its agent answers, without a socket."""

import errno

import pytest

from magsd.engine.fake.client import Client
from magsd.engine.fake.shim import CLIENTS_MAX
from magsd.guest.wire import (
    STREAMS_MAX,
    WINDOW_BYTES,
    Frame,
    Kind,
    WireError,
    pack_fields,
    parse_fields,
)
from tests.unit.engine.fake_vm import T1, Daemon, Vm
from tests.unit.engine.fake_world import settled


@pytest.fixture
async def vm(tmp_path):
    vm = Vm(tmp_path)
    yield vm
    await vm.aclose()


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.JOIN, 0),
        Frame(Kind.REPLY, 0),
        Frame(Kind.DATA, 5, 0, 0, b"x"),
        Frame(Kind.OPEN, T1, 2),
        Frame(Kind.OPEN, 0x8000, 1),
        Frame(Kind.DATA, T1, 1, 0, b"x"),
        Frame(Kind.DATA, T1, 0, 1, b"x"),
        Frame(Kind.EOF, T1, 0, 5),
        Frame(Kind.CREDIT, T1, 0, 1 << 20),
        Frame(Kind.EXIT, T1),
        Frame(Kind.OPEN, T1, 0),
        Frame(Kind.EXIT, T1 + 9),
        Frame(Kind.CREDIT, T1 + 9, 0, 1),
    ],
)
async def test_an_offence(vm, frame):
    daemon = Daemon(vm)
    daemon.run("sleep 100", stream=T1)
    with pytest.raises(WireError):
        daemon.client.take(frame)
    daemon.client.lost()
    assert vm.shim.open_streams == 0


async def test_streams_have_an_end_of_their_number(vm):
    daemon = Daemon(vm)
    for number in range(STREAMS_MAX + 1):
        daemon.run("sleep 100", stream=T1 + number)
    (reset,) = daemon.taken(Kind.RESET)
    assert reset.stream == T1 + STREAMS_MAX
    assert vm.shim.open_streams == STREAMS_MAX
    daemon.give(Kind.RESET, T1)
    daemon.run("sleep 100")
    assert len(daemon.taken(Kind.OPEN)) == 1
    daemon.client.lost()
    await settled()
    assert vm.shim.open_streams == 1
    others = [Client(vm.shim, daemon) for _ in range(CLIENTS_MAX + 1)]
    assert [vm.shim.connected(other) for other in others] == [True] * CLIENTS_MAX + [False]


async def test_output_waits_for_credit(vm):
    daemon = Daemon(vm)
    daemon.run("flood 1000000; echo", stream=T1)
    await settled()
    got = daemon.taken(Kind.DATA)
    assert sum(len(frame.payload) for frame in got) == WINDOW_BYTES
    daemon.give(Kind.CREDIT, T1, 1, WINDOW_BYTES)
    daemon.give(Kind.CREDIT, T1, 1, 2_000_000)
    await settled()
    got += daemon.taken(Kind.DATA)
    assert sum(len(frame.payload) for frame in got) == 1_000_001
    assert [frame.value for frame in daemon.taken(Kind.EOF)] == [1_000_001, 0]


async def test_input_of_a_program(vm):
    daemon = Daemon(vm)
    words = [("arg", "cat"), ("stdin", "open")]
    daemon.give(Kind.OPEN, T1, 0, 0, pack_fields("exec", words))
    daemon.give(Kind.DATA, T1, 0, 0, b"abc")
    await settled()
    daemon.give(Kind.DATA, T1, 0, 3, b"def")
    daemon.give(Kind.EOF, T1, 0, 6)
    await settled()
    assert b"".join(frame.payload for frame in daemon.taken(Kind.DATA)) == b"abcdef"
    assert [frame.value for frame in daemon.taken(Kind.EXIT)] == [0]


@pytest.mark.parametrize(
    ("what", "value"),
    [
        (pack_fields(["control", "quiesce"]), 0),
        (pack_fields(["control", "dance"]), 38),
        (pack_fields(["control", "identity"]), 22),
        (pack_fields(["control", "bind"], [("path", "etc/hosts")]), 2),
        (pack_fields("read", [("path", "/nowhere")]), 2),
        (pack_fields("read", [("path", "/etc")]), 21),
    ],
)
async def test_what_an_agent_answers(vm, what, value):
    daemon = Daemon(vm)
    daemon.give(Kind.OPEN, T1, 0, 0, what)
    await settled()
    assert [frame.value for frame in daemon.taken(Kind.EXIT)] == [value]


@pytest.mark.parametrize(
    "what", [b"exec\0", b"nonsense\0", b"read\0", b"control\0", b"no end", b""]
)
async def test_what_an_agent_does_not_understand(vm, what):
    daemon = Daemon(vm)
    daemon.give(Kind.OPEN, T1, 0, 0, what)
    await settled()
    assert len(daemon.taken(Kind.RESET)) == 1
    assert vm.shim.open_streams == 0


async def test_files_are_bound_where_the_vm_has_some(vm):
    daemon = Daemon(vm)
    machine = vm.shim.machine
    machine.write("/etc/conf", b"old")
    for name in ("etc/conf", "etc/new"):
        machine.write(f"/run/mags/root/{name}", b"bound")
    pairs = [("path", "etc/conf"), ("path", "etc/new")]
    daemon.give(Kind.OPEN, T1, 0, 0, pack_fields(["control", "bind"], pairs))
    (ended,) = daemon.taken(Kind.EXIT)
    assert parse_fields(ended.payload).all("absent") == ["/etc/new"]
    assert (machine.read("/etc/conf"), machine.has_file("/etc/new")) == (b"bound", False)


@pytest.mark.parametrize("word", ["sftp", "listen", "accept", "exec"])
async def test_what_no_simulation_has_is_refused(vm, word):
    daemon = Daemon(vm)
    pairs = [("arg", "true"), ("stdin", "terminal")]
    daemon.give(Kind.OPEN, T1, payload=pack_fields(word, pairs))
    await settled()
    (reset,) = daemon.taken(Kind.RESET)
    assert "simulated" in parse_fields(reset.payload).get("error")


async def test_nothing_listens_in_a_simulation(vm):
    daemon = Daemon(vm)
    pairs = [("host", "localhost"), ("port", "80")]
    daemon.give(Kind.OPEN, T1, payload=pack_fields("dial", pairs))
    await settled()
    (ended,) = daemon.taken(Kind.EXIT)
    assert ended.value == errno.ECONNREFUSED
