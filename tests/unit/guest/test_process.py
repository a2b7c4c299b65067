"""A program somebody talks to, as an agent is asked for it; the agent is the test."""

import asyncio

import pytest

from magsd.guest.process import Terminal, spawn
from magsd.guest.wire import Channel, Frame, Kind, parse_fields
from tests.unit.guest.peer import soon

FIRST = 0x10000


async def started(linked, **options):
    connection, peer = linked
    process = await spawn(connection, ["sh", "-l"], environment={"A": "1"}, **options)
    return process, peer, parse_fields((await peer.expect(Kind.OPEN)).payload)


async def test_without_a_terminal(linked):
    process, peer, fields = await started(linked, login_name="-sh", cwd="/tmp")
    assert (fields.word, fields.all("arg"), fields.all("env")) == ("exec", ["sh", "-l"], ["A=1"])
    assert (fields.get("stdin"), fields.get("cwd"), fields.get("name")) == ("open", "/tmp", "-sh")
    await process.write(b"in")
    assert (await peer.expect(Kind.DATA)).payload == b"in"
    await process.write_eof()
    await peer.expect(Kind.EOF)
    await peer.send(Frame(Kind.DATA, FIRST, Channel.ERR, 0, b"err"))
    assert await soon(process.read_any()) == (Channel.ERR, b"err")
    await peer.send(Frame(Kind.EXIT, FIRST, value=3 << 8))
    assert await soon(process.read_any()) is None
    assert await soon(process.wait()) == 3 << 8


async def test_with_a_terminal(linked):
    terminal = Terminal("vt100", 90, 25, b"\x01\0\0\0\x03")
    process, peer, fields = await started(linked, terminal=terminal)
    assert fields.get("stdin") == "terminal"
    assert (fields.get("columns"), fields.get("rows")) == ("90", "25")
    assert (fields.get("modes"), fields.get("name")) == ("0100000003", "")
    assert fields.all("env") == ["A=1", "TERM=vt100"]
    await process.resize(120, 50)
    assert (await peer.expect(Kind.SIGNAL)).value == (1 << 32) + (120 << 16) + 50
    await process.resize(1 << 20, -1)
    assert (await peer.expect(Kind.SIGNAL)).value == (1 << 32) + (65535 << 16)
    await process.signal(15)
    assert (await peer.expect(Kind.SIGNAL)).value == 15
    await process.aclose()
    await peer.expect(Kind.RESET)


async def test_a_terminal_of_no_kind_leaves_the_variable_alone(linked):
    _, _, fields = await started(linked, terminal=Terminal(""))
    assert fields.all("env") == ["A=1"]


async def test_cancelled_waiting_leaves_it_running(linked):
    process, peer, _ = await started(linked)
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await peer.send(Frame(Kind.EXIT, FIRST, value=0))
    assert await soon(process.wait()) == 0
