"""Streams: windows both ways, ends from either side, and far ends that keep no rules."""

import asyncio

import pytest

from magsd.guest.shim import ShimError
from magsd.guest.wire import PAYLOAD_MAX, WINDOW_BYTES, Channel, Frame, Kind
from tests.unit.guest.peer import soon

IN, OUT, ERR = Channel


@pytest.fixture
async def opened(linked):
    """A stream, its connection and the far end, which has seen the OPEN."""
    connection, peer = linked
    stream = await connection.open_stream(b"exec\0")
    assert await peer.expect(Kind.OPEN) == Frame(Kind.OPEN, 0x10000, payload=b"exec\0")
    return stream, connection, peer


def data(payload, offset=0, channel=OUT, stream=0x10000):
    return Frame(Kind.DATA, stream, channel, offset, payload)


def end(channel, length, stream=0x10000):
    return Frame(Kind.EOF, stream, channel, length)


def over(value=0, payload=b"", stream=0x10000):
    return Frame(Kind.EXIT, stream, value=value, payload=payload)


async def test_each_stream_has_an_id_of_its_own(opened):
    _, connection, peer = opened
    other = await connection.open_stream(b"read\0")
    assert (await peer.expect(Kind.OPEN)).stream == 0x10001
    await peer.send(data(b"for the other", stream=0x10001))
    assert await soon(other.read()) == b"for the other"


async def test_output_by_channel(opened):
    stream, _, peer = opened
    await peer.send(data(b"out"), data(b"err", 0, ERR), data(b"more", 3), end(OUT, 7))
    await peer.send(end(ERR, 3), over(256, b"note=x\0"))
    ended = await soon(stream.exit())
    assert (ended.value, ended.fields.get("note")) == (256, "x")
    assert stream.is_over
    assert await stream.read() == b"outmore"
    assert await stream.read() == b""
    assert await stream.read(ERR) == b"err"
    assert await stream.read(ERR) == b""
    assert await stream.read_any() is None


async def test_output_of_either_channel_as_it_comes(opened):
    stream, _, peer = opened
    await peer.send(data(b"a", 0, ERR), end(ERR, 1))
    assert await soon(stream.read_any()) == (ERR, b"a")
    await peer.send(data(b"b"), end(OUT, 1))
    assert await soon(stream.read_any()) == (OUT, b"b")
    assert await soon(stream.read_any()) is None


async def test_an_exit_ends_channels_that_had_no_end(opened):
    stream, _, peer = opened
    reading = asyncio.create_task(stream.read())
    await peer.send(over(2, b"error=No such file or directory\0"))
    assert await soon(reading) == b""
    assert await stream.read_any() is None
    with pytest.raises(ShimError, match=r"^/x: No such file or directory$"):
        (await stream.exit()).check("/x")


async def test_an_errno_without_words_is_named(opened):
    stream, _, peer = opened
    await peer.send(over(13))
    with pytest.raises(ShimError, match="Permission denied"):
        (await soon(stream.exit())).check("/x")


async def test_an_errno_that_is_none(opened):
    stream, _, peer = opened
    await peer.send(over(2**64 - 1))
    with pytest.raises(ShimError, match="unknown error"):
        (await soon(stream.exit())).check("/x")


async def test_credit_is_given_again_after_half_a_window(opened):
    stream, _, peer = opened
    half = WINDOW_BYTES // 2
    await peer.send(data(bytes(half - 1)[:PAYLOAD_MAX]))
    sent = PAYLOAD_MAX
    assert len(await soon(stream.read())) == sent
    await peer.send(data(bytes(half - sent), sent))
    assert len(await soon(stream.read())) == half - sent
    assert await peer.next() == Frame(Kind.CREDIT, 0x10000, OUT, half + WINDOW_BYTES)


async def test_no_credit_for_a_channel_that_is_not_read(opened):
    stream, connection, peer = opened
    for offset in range(0, WINDOW_BYTES, PAYLOAD_MAX):
        await peer.send(data(bytes(PAYLOAD_MAX), offset))
    await peer.send(Frame(Kind.DATA, 0, value=1))
    await soon(connection.journal_grown(0))
    await connection.signal(1, 9)
    assert (await peer.next()).kind is Kind.SIGNAL
    assert len(await stream.read()) == WINDOW_BYTES
    assert (await peer.next()).value == 2 * WINDOW_BYTES


async def test_one_stream_that_is_not_read_holds_no_other(opened):
    _, connection, peer = opened
    other = await connection.open_stream(b"exec\0")
    for offset in range(0, WINDOW_BYTES, PAYLOAD_MAX):
        await peer.send(data(bytes(PAYLOAD_MAX), offset))
    await peer.send(data(b"through", stream=0x10001))
    assert await soon(other.read()) == b"through"


async def test_input_waits_for_credit(opened):
    stream, _, peer = opened
    content = bytes(range(256)) * 2048
    writing = asyncio.create_task(stream.write(content))
    received = bytearray()
    limit = WINDOW_BYTES
    while len(received) < len(content):
        frame = await peer.expect(Kind.DATA)
        assert (frame.channel, frame.value) == (IN, len(received))
        received += frame.payload
        assert len(received) <= limit
        if len(received) == limit:
            assert not writing.done() or limit == len(content)
            limit += 100_000
            await peer.send(Frame(Kind.CREDIT, 0x10000, IN, limit))
    await soon(writing)
    assert received == content
    await stream.write_eof()
    await stream.write_eof()
    assert await peer.expect(Kind.EOF) == end(IN, len(content))
    await stream.aclose()
    await peer.expect(Kind.RESET)


async def test_input_after_its_end_is_refused(opened):
    stream, _, _ = opened
    await stream.write_eof()
    with pytest.raises(ShimError, match="input was ended"):
        await stream.write(b"x")


async def test_input_for_nobody_has_nowhere_to_go(opened):
    stream, _, peer = opened
    writing = asyncio.create_task(stream.write(bytes(WINDOW_BYTES + 1)))
    for _ in range(4):
        await peer.expect(Kind.DATA)
    await peer.send(over(0))
    await soon(writing)
    await stream.write(b"more")
    await stream.write_eof()
    await stream.signal(9)
    await stream.aclose()
    await (await stream_after(opened)).signal(2)
    assert (await peer.next()).kind is Kind.OPEN
    assert (await peer.next()).kind is Kind.SIGNAL


async def stream_after(opened):
    return await opened[1].open_stream(b"exec\0")


async def test_a_signal(opened):
    stream, _, peer = opened
    await stream.signal(15)
    assert await peer.next() == Frame(Kind.SIGNAL, 0x10000, value=15)


async def test_a_far_end_that_resets(opened):
    stream, _, peer = opened
    await peer.send(data(b"before"), Frame(Kind.RESET, 0x10000, payload=b"error=too many\0"))
    with pytest.raises(ShimError, match="too many"):
        await soon(stream.exit())
    assert await stream.read() == b"before"
    for call in (stream.read, stream.read_any, stream.write_eof, lambda: stream.write(b"x")):
        with pytest.raises(ShimError, match="too many"):
            await call()
    await stream.aclose()


async def test_leaving_a_stream_resets_it(opened):
    stream, connection, peer = opened
    async with stream:
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
    assert (await peer.next()).kind is Kind.RESET
    with pytest.raises(ShimError, match="closed here"):
        await soon(reading)
    await stream.aclose()
    await peer.send(data(b"it crossed"), over(9), Frame(Kind.DATA, 0, value=1))
    assert await soon(connection.journal_grown(0)) == 1


async def test_frames_for_a_stream_that_is_over_are_dropped(opened):
    stream, connection, peer = opened
    await peer.send(over(0), data(b"late", 99), end(OUT, 1), over(1), Frame(Kind.DATA, 0, value=1))
    assert await soon(connection.journal_grown(0)) == 1
    assert (await stream.exit()).value == 0
    assert await stream.read() == b""


async def test_cancelled_waits_leave_the_stream_usable(opened):
    stream, _, peer = opened
    for work in (stream.read(), stream.read_any(), stream.exit(), stream.write(bytes(1 << 20))):
        waiting = asyncio.create_task(work)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await peer.send(data(b"still"), over(3))
    assert (await soon(stream.exit())).value == 3
    assert await stream.read() == b"still"


async def test_what_was_received_can_be_read_after_the_connection(opened):
    stream, connection, peer = opened
    await peer.send(data(b"received"))
    peer.close()
    await soon(connection.closed())
    assert await stream.read() == b"received"
    with pytest.raises(ShimError, match="ended"):
        await stream.read()
    await stream.aclose()


OFFENCES = {
    "a gap": [data(b"x", 1)],
    "no order": [data(b"ab"), data(b"x", 1)],
    "over the credit": [data(bytes(PAYLOAD_MAX), PAYLOAD_MAX * i) for i in range(5)],
    "data after its end": [end(OUT, 0), data(b"x")],
    "a second end": [end(OUT, 0), end(OUT, 0)],
    "an end too early": [end(ERR, 1)],
    "data for channel in": [data(b"", 0, IN)],
    "an end of channel in": [end(IN, 0)],
    "credit for a channel that is sent": [Frame(Kind.CREDIT, 0x10000, OUT, 1 << 30)],
    "credit taken back": [Frame(Kind.CREDIT, 0x10000, IN, 1)],
    "fields without end": [over(0, b"x")],
    "a request": [Frame(Kind.REQUEST, 0x10000)],
    "a signal": [Frame(Kind.SIGNAL, 0x10000, value=9)],
    "an opening": [Frame(Kind.OPEN, 0x10000)],
    "a join": [Frame(Kind.JOIN, 0x10000)],
}


@pytest.mark.parametrize("frames", OFFENCES.values(), ids=OFFENCES.keys())
async def test_a_far_end_that_breaks_the_rules_loses_the_connection(opened, frames):
    stream, connection, peer = opened
    waiting = asyncio.create_task(stream.exit())
    await peer.send(*frames)
    with pytest.raises(ShimError, match="protocol was broken"):
        await soon(waiting)
    await soon(connection.closed())
