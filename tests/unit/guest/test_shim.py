"""A connection against a shim that is played by the test."""

import asyncio
import json
import os
import signal
import socket
from contextlib import aclosing

import pytest

from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.state import StreamState
from magsd.guest.wire import Frame, Kind, encode, pack_fields, parse_fields
from tests.unit.guest.peer import Peer, ended, soon


async def run_until_waiting(task):
    """Let a task come to where it waits for the far end."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


# --- starting and greeting -----------------------------------------------------


async def test_a_shim_that_starts_says_it_is_ready(linked):
    connection, peer = linked
    await peer.send(Frame(Kind.REPLY, 0, payload=pack_fields("ok", [("pid", "4711")])))
    assert (await soon(connection.ready())).number("pid") == 4711


async def test_a_shim_that_cannot_start_says_why(linked):
    connection, peer = linked
    waiting = asyncio.create_task(connection.ready())
    await peer.send(Frame(Kind.REPLY, 0, payload=pack_fields("", [("error", "no loop device")])))
    with pytest.raises(ShimError, match="no loop device"):
        await soon(waiting)


async def test_a_greeting_tells_all_that_is_over(linked):
    connection, peer = linked
    greeting = asyncio.create_task(connection.hello("vm-1", 3))
    pairs = [("agent", "1.2"), ("journal", "77"), ("durable", "1:2"), ("durable", "2:1")]
    fields = await peer.answer("hello", *pairs)
    assert fields.get("version") == "1"
    assert (fields.get("vm"), fields.get("epoch")) == ("vm-1", "3")
    await run_until_waiting(greeting)
    await peer.send(ended(1, 9, timed_out=1, out=10, err=20, ended_ns=30))
    await soon(greeting)
    assert connection.durable(1) == StreamState(1, True, 9, True, 0, 30, 10, 20)
    assert connection.durable(2) == StreamState(2, is_over=False)
    assert connection.durable(3) is None
    assert connection.agent == "1.2"
    assert connection.journal_end == 77


async def test_a_greeting_by_the_record_through_a_long_path(tmp_path):
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    (directory / "record.json").write_text(json.dumps({"vm": "vm-9", "epoch": 2}))
    with socket.socket(socket.AF_UNIX) as listener:
        _bind(listener, directory)
        opening = asyncio.create_task(ShimConnection.open(directory))
        listener.setblocking(False)
        sock, _ = await soon(asyncio.get_running_loop().sock_accept(listener))
        with Peer(sock) as peer:
            fields = await peer.answer("hello")
            async with aclosing(await soon(opening)):
                assert (fields.get("vm"), fields.get("epoch")) == ("vm-9", "2")
            assert await peer.at_end()


async def test_another_vm_is_an_error_and_the_connection_is_closed(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        _bind(listener, tmp_path)
        opening = asyncio.create_task(ShimConnection.open(tmp_path))
        listener.setblocking(False)
        sock, _ = await soon(asyncio.get_running_loop().sock_accept(listener))
        with Peer(sock) as peer:
            assert (await peer.answer("hello", ("error", "this is VM x"))).get("vm") == ""
            with pytest.raises(ShimError, match="this is VM x"):
                await soon(opening)
            assert await peer.at_end()


async def test_nobody_there_is_a_shim_error(tmp_path):
    with pytest.raises(ShimError, match="no shim answers"):
        await ShimConnection.open(tmp_path / "nowhere")
    with pytest.raises(ShimError, match="no shim answers"):
        await ShimConnection.open(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        _bind(listener, tmp_path)
    with pytest.raises(ShimError, match="no shim answers"):
        await ShimConnection.open(tmp_path)


async def test_opening_may_be_cancelled(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        _bind(listener, tmp_path)
        opening = asyncio.create_task(ShimConnection.open(tmp_path))
        listener.setblocking(False)
        sock, _ = await soon(asyncio.get_running_loop().sock_accept(listener))
        with Peer(sock) as peer:
            await peer.expect(Kind.REQUEST)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(opening)
            assert await peer.at_end()


def _bind(listener, directory):
    descriptor = os.open(directory, os.O_PATH)
    listener.bind(f"/proc/self/fd/{descriptor}/sock")
    os.close(descriptor)
    listener.listen()


# --- verbs -----------------------------------------------------------------------


async def test_replies_find_their_requests_in_any_order(linked):
    connection, peer = linked
    first = asyncio.create_task(connection.request("freeze", deadline_ms="100"))
    request = await peer.expect(Kind.REQUEST)
    assert parse_fields(request.payload).pairs == (("deadline_ms", "100"),)
    second = asyncio.create_task(connection.request("note", text="a\nb"))
    other = await peer.expect(Kind.REQUEST)
    await peer.reply(other, ("which", "second"))
    await peer.reply(request, ("error", "there is no freezer"), word="")
    assert (await soon(second)).get("which") == "second"
    with pytest.raises(ShimError, match="there is no freezer"):
        await soon(first)


async def test_a_cancelled_request_leaves_the_connection_usable(linked):
    connection, peer = linked
    given_up = asyncio.create_task(connection.request("thaw"))
    request = await peer.expect(Kind.REQUEST)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await peer.reply(request)
    again = asyncio.create_task(connection.request("thaw"))
    await peer.answer("thaw")
    assert (await soon(again)).word == "ok"


async def test_a_field_that_cannot_be_sent_is_the_callers_error(linked):
    connection, peer = linked
    with pytest.raises(ValueError, match="NUL"):
        await connection.request("note", text="\0")
    with pytest.raises(ValueError, match="limit"):
        await connection.request("note", text="x" * 70_000)
    asking = asyncio.create_task(connection.request("thaw"))
    await peer.answer("thaw")
    await soon(asking)


# --- durable streams and the journal -----------------------------------------------


async def test_a_durable_stream_from_open_to_exit(linked):
    connection, peer = linked
    opening = asyncio.create_task(connection.open_durable(1, b"exec\0arg=true\0", 1.0005))
    frame = await peer.expect(Kind.OPEN)
    assert frame == Frame(Kind.OPEN, 1, 1, 1001, b"exec\0arg=true\0")
    await peer.send(Frame(Kind.OPEN, 1, 1, 1))
    await soon(opening)
    assert connection.durable(1) == StreamState(1, is_over=False)
    exited = asyncio.create_task(connection.exited(1))
    await connection.signal(1, signal.SIGTERM)
    assert await peer.expect(Kind.SIGNAL) == Frame(Kind.SIGNAL, 1, value=15)
    await peer.send(ended(1, 15))
    assert (await soon(exited)).wait_status == 15
    assert await soon(connection.exited(1)) == connection.durable(1)


async def test_opening_again_opens_nothing_and_loses_nothing(linked):
    connection, peer = linked
    asks = [asyncio.create_task(connection.open_durable(5, b"exec\0")) for _ in range(2)]
    for _ in asks:
        await peer.expect(Kind.OPEN)
    await peer.send(Frame(Kind.OPEN, 5, 1, 2), ended(5, 256), Frame(Kind.OPEN, 5, 1, 2))
    await soon(asyncio.gather(*asks))
    assert (await soon(connection.exited(5))).wait_status == 256


async def test_a_refused_durable_stream(linked):
    connection, peer = linked
    opening = asyncio.create_task(connection.open_durable(2, b"exec\0"))
    await peer.expect(Kind.OPEN)
    await peer.send(Frame(Kind.RESET, 2, payload=b"error=too many streams\0"))
    with pytest.raises(ShimError, match="too many streams"):
        await soon(opening)
    assert connection.durable(2) is None


@pytest.mark.parametrize("stream", [0, -1, 0x8000])
async def test_ids_of_durable_streams(linked, stream):
    connection, _ = linked
    with pytest.raises(ValueError, match="durable"):
        await connection.open_durable(stream, b"exec\0")


async def test_the_journal_tells_that_it_grew(linked):
    connection, peer = linked
    told = []
    connection.on_journal(told.append)
    grown = asyncio.create_task(connection.journal_grown(100))
    await peer.send(*(Frame(Kind.DATA, 0, value=end) for end in (50, 100, 100, 101)))
    assert await soon(grown) == 101
    assert told == [50, 100, 101]
    assert await soon(connection.journal_grown(7)) == 101
    connection.on_journal(None)
    await peer.send(Frame(Kind.DATA, 0, value=200))
    assert await soon(connection.journal_grown(101)) == 200
    assert told == [50, 100, 101]


# --- the end -----------------------------------------------------------------------


async def wait_everywhere(connection, peer):
    """Return tasks that wait in every way there is."""
    stream = await connection.open_stream(b"exec\0")
    waits = [
        connection.ready(),
        connection.request("freeze"),
        connection.open_durable(3, b"exec\0"),
        connection.exited(1),
        connection.journal_grown(5),
        stream.read(),
        stream.read_any(),
        stream.exit(),
        stream.write(bytes(1 << 20)),
    ]
    tasks = [asyncio.create_task(wait) for wait in waits]
    seen = {(await peer.next()).kind for _ in range(7)}
    assert seen == {Kind.OPEN, Kind.REQUEST, Kind.DATA}
    return tasks


async def assert_all_end(tasks, reason):
    results = await soon(asyncio.gather(*tasks, return_exceptions=True))
    assert [type(result) for result in results] == [ShimError] * len(tasks)
    assert all(reason in str(result) for result in results)


async def test_all_waits_end_when_the_shim_goes(linked):
    connection, peer = linked
    tasks = await wait_everywhere(connection, peer)
    peer.close()
    await assert_all_end(tasks, "ended")
    await soon(connection.closed())


async def test_all_waits_end_when_the_connection_is_closed_here(linked):
    connection, peer = linked
    tasks = await wait_everywhere(connection, peer)
    await soon(connection.aclose())
    await connection.aclose()
    await assert_all_end(tasks, "closed here")
    await soon(connection.closed())
    assert await peer.at_end()


async def test_all_waits_end_after_an_offence(linked):
    connection, peer = linked
    tasks = await wait_everywhere(connection, peer)
    await peer.raw(bytes(24))
    await assert_all_end(tasks, "not a frame")
    await soon(connection.closed())


async def test_nothing_works_after_the_end(linked):
    connection, peer = linked
    peer.close()
    await soon(connection.closed())
    for call in (
        connection.request("thaw"),
        connection.open_durable(1, b""),
        connection.open_stream(b""),
        connection.signal(1, 9),
        connection.ready(),
    ):
        with pytest.raises(ShimError, match="ended"):
            await soon(call)


async def test_what_was_sent_before_the_close_arrives(linked):
    connection, peer = linked
    await connection.signal(1, 9)
    await connection.aclose()
    assert (await peer.next()).kind is Kind.SIGNAL
    assert await peer.next() is None


OFFENCES = [
    Frame(Kind.JOIN, 0),
    Frame(Kind.REQUEST, 0, value=1),
    Frame(Kind.REPLY, 0, value=99),
    Frame(Kind.REPLY, 0, value=0, payload=b"not ended"),
    Frame(Kind.DATA, 0, value=1, payload=b"x"),
    Frame(Kind.OPEN, 1, 1, 3),
    Frame(Kind.OPEN, 1, 0, 1),
    Frame(Kind.DATA, 1, 1, 0, b"x"),
    Frame(Kind.CREDIT, 1, 1, 0),
    Frame(Kind.EXIT, 1, payload=b"out=many\0"),
    Frame(Kind.EXIT, 0x8000),
    Frame(Kind.DATA, 0x10000, 1),
    Frame(Kind.REPLY, 0x10000),
    Frame(Kind.SIGNAL, 1),
]


@pytest.mark.parametrize("frame", OFFENCES, ids=lambda frame: f"{frame.kind.name}-{frame.stream}")
async def test_what_a_shim_may_not_send_ends_the_connection(linked, frame):
    connection, peer = linked
    waiting = asyncio.create_task(connection.exited(7))
    await peer.send(frame)
    with pytest.raises(ShimError, match="protocol was broken"):
        await soon(waiting)
    await soon(connection.closed())


@pytest.mark.parametrize("durable", ["", "1", "0:1", "32768:1", "x:1", "1:x"])
async def test_a_greeting_that_makes_no_sense(linked, durable):
    connection, peer = linked
    greeting = asyncio.create_task(connection.hello(None, None))
    await peer.answer("hello", ("durable", durable))
    with pytest.raises(ShimError, match="greeting"):
        await soon(greeting)
    await soon(connection.closed())


async def test_frames_may_come_in_any_pieces(linked):
    connection, peer = linked
    for byte in encode(Frame(Kind.DATA, 0, value=9)):
        await peer.raw(bytes([byte]))
    assert await soon(connection.journal_grown(0)) == 9
