"""A listener, as an agent is asked for it; the agent is the test, and not always honest."""

import asyncio

import pytest

from magsd.guest.listen import listen
from magsd.guest.shim import ShimError
from magsd.guest.wire import Channel, Frame, Kind, pack_fields, parse_fields
from tests.unit.guest.peer import soon

FIRST = 0x10000


async def told(linked, *pieces):
    """Begin to listen, and tell what an agent might."""
    connection, peer = linked
    listening = asyncio.create_task(listen(connection, "localhost", 0))
    fields = parse_fields((await peer.expect(Kind.OPEN)).payload)
    assert (fields.word, fields.get("host"), fields.get("port")) == ("listen", "localhost", "0")
    offset = 0
    for piece in pieces:
        await peer.send(Frame(Kind.DATA, FIRST, Channel.OUT, offset, piece))
        offset += len(piece)
    return listening, peer


async def test_a_connection_is_accepted_by_its_number(linked):
    listening, peer = await told(linked, b"80", b"00\n7 127.", b"0.0.1 4000\n")
    listener = await soon(listening)
    assert listener.port == 8000
    accepting = asyncio.create_task(listener.accept())
    asked = await peer.expect(Kind.OPEN)
    fields = parse_fields(asked.payload)
    assert (fields.word, fields.get("id")) == ("accept", "7")
    await peer.send(Frame(Kind.EOF, asked.stream, Channel.ERR))
    stream, host, port = await soon(accepting)
    assert (host, port) == ("127.0.0.1", 4000)
    await stream.aclose()
    assert (await peer.expect(Kind.RESET)).stream == asked.stream


async def test_one_that_is_gone_is_passed_over(linked):
    listening, peer = await told(linked, b"8000\n7 ::1 4000\n8 ::1 4001\n")
    accepting = asyncio.create_task((await soon(listening)).accept())
    gone = await peer.expect(Kind.OPEN)
    await peer.send(Frame(Kind.RESET, gone.stream, payload=pack_fields("", [("error", "gone")])))
    asked = await peer.expect(Kind.OPEN)
    await peer.send(Frame(Kind.EOF, asked.stream, Channel.ERR))
    assert (await soon(accepting))[1:] == ("::1", 4001)


async def test_a_place_that_cannot_be_had(linked):
    listening, peer = await told(linked)
    await peer.send(Frame(Kind.EXIT, FIRST, value=98))
    with pytest.raises(ShimError, match="in use"):
        await soon(listening)


@pytest.mark.parametrize("text", [b"x\n", b"-1\n", b"\n", bytes(1000), b"9" * 30 + b"\n"])
async def test_a_port_that_is_none(linked, text):
    listening, peer = await told(linked, text)
    with pytest.raises(ShimError, match="none"):
        await soon(listening)
    await peer.expect(Kind.RESET)


@pytest.mark.parametrize("text", [b"x ::1 1\n", b"1\n", b"1 ::1\n", b"1 ::1 x\n", b"\xff" * 999])
async def test_a_list_that_is_none(linked, text):
    listening, _ = await told(linked, b"8000\n" + text)
    with pytest.raises(ShimError, match="none"):
        await soon((await soon(listening)).accept())
