"""What is sent to an agent, and what its answers become; the agent is played by the test."""

import asyncio
from contextlib import aclosing

import pytest

from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.guest.wire import Channel, Frame, Kind, pack_fields, parse_fields
from tests.unit.guest.peer import soon

FIRST = 0x10000


async def opening(peer):
    frame = await peer.expect(Kind.OPEN)
    return parse_fields(frame.payload)


def over(value=0, *pairs):
    return Frame(Kind.EXIT, FIRST, value=value, payload=pack_fields("", pairs))


def output(payload, channel=Channel.OUT):
    return Frame(Kind.DATA, FIRST, channel, 0, payload)


async def test_control(linked):
    connection, peer = linked
    asking = asyncio.create_task(
        streams.control(connection, "bind", path=["/etc/a", "/etc/b"], one="1")
    )
    fields = await opening(peer)
    assert fields.words == ("control", "bind")
    assert fields.pairs == (("path", "/etc/a"), ("path", "/etc/b"), ("one", "1"))
    await peer.send(over(0, ("absent", "/etc/b")))
    assert (await soon(asking)).all("absent") == ["/etc/b"]


async def test_control_that_fails(linked):
    connection, peer = linked
    asking = asyncio.create_task(streams.control(connection, "stats"))
    await opening(peer)
    await peer.send(over(22, ("error", "no such control")))
    with pytest.raises(ShimError, match="stats: no such control"):
        await soon(asking)


async def test_a_file_is_written_from_bytes(linked):
    connection, peer = linked
    writing = asyncio.create_task(streams.write_file(connection, "/run/x", b"content", mode=0o755))
    fields = await opening(peer)
    assert (fields.word, fields.get("path"), fields.get("mode")) == ("write", "/run/x", "755")
    assert (await peer.expect(Kind.DATA)).payload == b"content"
    assert (await peer.expect(Kind.EOF)).value == 7
    await peer.send(over())
    await soon(writing)


async def pieces(*content):
    for piece in content:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def test_a_file_is_written_from_what_comes(linked):
    connection, peer = linked
    writing = asyncio.create_task(streams.write_file(connection, "/x", pieces(b"a", b"", b"bc")))
    await opening(peer)
    assert (await peer.expect(Kind.DATA)).payload == b"a"
    assert (await peer.expect(Kind.DATA)).payload == b"bc"
    assert (await peer.expect(Kind.EOF)).value == 3
    await peer.send(over())
    await soon(writing)


async def test_content_that_breaks_off_is_not_written(linked):
    connection, peer = linked
    writing = asyncio.create_task(
        streams.write_file(connection, "/x", pieces(b"a", LookupError("gone")))
    )
    await opening(peer)
    await peer.expect(Kind.DATA)
    await peer.expect(Kind.RESET)
    with pytest.raises(LookupError):
        await soon(writing)


async def test_a_file_that_cannot_be_written_stops_its_content(linked):
    connection, peer = linked
    is_refused = asyncio.Event()

    async def endless():
        yield b"first"
        await is_refused.wait()
        while True:
            yield bytes(1000)

    writing = asyncio.create_task(streams.write_file(connection, "/x", endless()))
    await opening(peer)
    await peer.send(over(28), Frame(Kind.DATA, 0, value=1))
    await soon(connection.journal_grown(0))
    is_refused.set()
    with pytest.raises(ShimError, match="No space left"):
        await soon(writing)


async def test_a_file_is_read(linked):
    connection, peer = linked
    reading = asyncio.create_task(_all(streams.read_file(connection, "/etc/os-release")))
    fields = await opening(peer)
    assert (fields.word, fields.get("path")) == ("read", "/etc/os-release")
    await peer.send(output(b"content"), Frame(Kind.EOF, FIRST, 1, 7), over())
    assert await soon(reading) == b"content"


async def test_a_file_that_breaks_off_is_an_error(linked):
    connection, peer = linked
    reading = asyncio.create_task(_all(streams.read_file(connection, "/x")))
    await opening(peer)
    await peer.send(output(b"half"), over(5))
    with pytest.raises(ShimError, match="Input/output error"):
        await soon(reading)


async def test_a_file_that_is_not_read_to_its_end_is_let_go(linked):
    connection, peer = linked
    async with aclosing(streams.read_file(connection, "/x")) as content:
        first = asyncio.create_task(anext(content))
        await opening(peer)
        await peer.send(output(b"first"))
        assert await soon(first) == b"first"
    await peer.expect(Kind.RESET)


async def _all(content):
    return b"".join([piece async for piece in content])


async def test_a_command(linked):
    connection, peer = linked
    running = asyncio.create_task(
        streams.run(connection, ["/bin/sh", "-c", "x=y"], environment={"A": "1"}, cwd="/tmp")
    )
    fields = await opening(peer)
    assert fields.word == "exec"
    assert fields.all("arg") == ["/bin/sh", "-c", "x=y"]
    assert (fields.all("env"), fields.get("cwd")) == (["A=1"], "/tmp")
    assert fields.get("stdin") == ""
    await peer.send(output(b"out"), output(b"err", Channel.ERR))
    await peer.send(Frame(Kind.EOF, FIRST, 1, 3), Frame(Kind.EOF, FIRST, 2, 3), over(256))
    assert await soon(running) == streams.ExecResult(256, b"out", b"err", False)


async def test_a_command_with_input_and_too_much_output(linked):
    connection, peer = linked
    running = asyncio.create_task(
        streams.run(connection, ["cat"], environment={}, stdin=b"input", output_max=3)
    )
    assert (await opening(peer)).get("stdin") == "open"
    assert (await peer.expect(Kind.DATA)).payload == b"input"
    await peer.expect(Kind.EOF)
    await peer.send(output(b"abcd"), output(b"abc", Channel.ERR), over())
    assert await soon(running) == streams.ExecResult(0, b"abc", b"abc", True)


async def test_a_command_that_does_not_read_its_input(linked):
    connection, peer = linked
    running = asyncio.create_task(
        streams.run(connection, ["true"], environment={}, stdin=bytes(1 << 20))
    )
    await opening(peer)
    await peer.expect(Kind.DATA)
    await peer.send(over(0))
    assert (await soon(running)).wait_status == 0


async def test_a_command_whose_vm_goes_is_one_error(linked):
    connection, peer = linked
    running = asyncio.create_task(
        streams.run(connection, ["cat"], environment={}, stdin=bytes(1 << 20))
    )
    await opening(peer)
    peer.close()
    with pytest.raises(ShimError, match="ended"):
        await soon(running)


@pytest.mark.parametrize("stdin", [None, b"input"])
async def test_a_cancelled_command_is_killed(linked, stdin):
    connection, peer = linked
    running = asyncio.create_task(streams.run(connection, ["cat"], environment={}, stdin=stdin))
    await opening(peer)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(running)
    while (await peer.next()).kind is not Kind.RESET:
        pass
