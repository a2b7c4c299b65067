"""A connection that an agent makes, as it is asked for and told; the agent is the test."""

import asyncio
import errno

import pytest

from magsd.guest.dial import DialError, dial
from magsd.guest.shim import ShimError
from magsd.guest.wire import Channel, Frame, Kind, pack_fields, parse_fields
from tests.unit.guest.peer import soon

FIRST = 0x10000


async def opening(peer):
    return parse_fields((await peer.expect(Kind.OPEN)).payload)


async def test_it_stands_when_err_ends(linked):
    connection, peer = linked
    dialing = asyncio.create_task(dial(connection, "localhost", 8000))
    fields = await opening(peer)
    assert (fields.word, fields.get("host"), fields.get("port")) == ("dial", "localhost", "8000")
    assert not dialing.done()
    await peer.send(Frame(Kind.EOF, FIRST, Channel.ERR), Frame(Kind.DATA, FIRST, 1, 0, b"hello"))
    async with await soon(dialing) as stream:
        assert await soon(stream.read()) == b"hello"
    await peer.expect(Kind.RESET)


@pytest.mark.parametrize(
    ("value", "number"), [(errno.ECONNREFUSED, errno.ECONNREFUSED), (1 << 40, errno.EIO)]
)
async def test_an_errno_is_told(linked, value, number):
    connection, peer = linked
    dialing = asyncio.create_task(dial(connection, "localhost", 8000))
    await opening(peer)
    told = pack_fields("", [("error", "why")])
    await peer.send(Frame(Kind.EXIT, FIRST, value=value, payload=told))
    with pytest.raises(DialError, match="localhost:8000: why") as caught:
        await soon(dialing)
    assert caught.value.errno == number


async def test_one_too_many_is_refused(linked):
    connection, peer = linked
    dialing = asyncio.create_task(dial(connection, "localhost", 8000))
    await opening(peer)
    await peer.send(Frame(Kind.RESET, FIRST, payload=pack_fields("", [("error", "too many")])))
    with pytest.raises(ShimError, match="too many"):
        await soon(dialing)


async def test_cancelled_it_is_closed(linked):
    connection, peer = linked
    dialing = asyncio.create_task(dial(connection, "localhost", 8000))
    await opening(peer)
    dialing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialing
    await peer.expect(Kind.RESET)


async def test_a_connection_that_breaks_raises_behind_what_came(linked):
    connection, peer = linked
    dialing = asyncio.create_task(dial(connection, "localhost", 8000))
    await opening(peer)
    await peer.send(Frame(Kind.EOF, FIRST, Channel.ERR), Frame(Kind.DATA, FIRST, 1, 0, b"half"))
    stream = await soon(dialing)
    await peer.send(Frame(Kind.RESET, FIRST, payload=pack_fields("", [("error", "reset")])))
    assert await soon(stream.read()) == b"half"
    with pytest.raises(ShimError, match="reset"):
        await soon(stream.read())
