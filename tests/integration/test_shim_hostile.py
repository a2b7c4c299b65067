"""Bytes that no honest daemon and no honest agent sends."""

import asyncio
import contextlib

import pytest

from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.guest.state import EndCode, read_stream
from magsd.guest.wire import (
    TRANSIENT_ID_MIN,
    Channel,
    Frame,
    FrameReader,
    Kind,
    encode,
    pack_fields,
)
from tests.integration.shim_process import (
    ShimProcess,
    ended,
    journaled,
    scripted_agent,
    shell,
)

PATH = {"PATH": "/usr/bin:/bin"}
OPEN = Frame(Kind.OPEN, TRANSIENT_ID_MIN, payload=shell("exec sleep 60"))
STREAM = "frame = take(); sid = frame.stream\n"
"""Of a scripted agent: take an OPEN."""


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([Frame(Kind.JOIN, 0)], id="join"),
        pytest.param([Frame(Kind.EXIT, TRANSIENT_ID_MIN)], id="exit"),
        pytest.param([Frame(Kind.REPLY, 0)], id="reply"),
        pytest.param([Frame(Kind.REQUEST, 5)], id="request on a stream"),
        pytest.param([Frame(Kind.OPEN, 0)], id="open stream 0"),
        pytest.param([Frame(Kind.OPEN, 0x8000)], id="open an id of nobody"),
        pytest.param([Frame(Kind.OPEN, TRANSIENT_ID_MIN, Channel.OUT)], id="durable id too high"),
        pytest.param([Frame(Kind.OPEN, 5, Channel.IN)], id="transient id too low"),
        pytest.param([OPEN, OPEN], id="open twice"),
        pytest.param([OPEN, Frame(Kind.DATA, OPEN.stream, Channel.IN, 1, b"x")], id="gap"),
        pytest.param([OPEN, Frame(Kind.DATA, OPEN.stream, Channel.OUT, 0, b"x")], id="data out"),
        pytest.param([OPEN, Frame(Kind.CREDIT, OPEN.stream, Channel.IN, 1 << 40)], id="credit in"),
        pytest.param(
            [OPEN, Frame(Kind.EOF, OPEN.stream, Channel.IN, 1)], id="eof at another place"
        ),
        pytest.param([OPEN, *[Frame(Kind.EOF, OPEN.stream, Channel.IN, 0)] * 2], id="eof twice"),
        pytest.param([Frame(Kind.DATA, 3, Channel.IN, 0, b"x")], id="data to a durable stream"),
        pytest.param([Frame(Kind.RESET, 3)], id="reset of a durable stream"),
        pytest.param([Frame(Kind.EXIT, TRANSIENT_ID_MIN + 9)], id="exit of no stream"),
        pytest.param([b"\xff" * 24], id="no frame"),
        pytest.param([encode(Frame(Kind.SIGNAL, 3))[:12] + b"\1" * 12], id="reserved bytes"),
    ],
)
async def test_an_offence_ends_its_connection_and_no_other(tmp_path, frames):
    async with await ShimProcess.open(tmp_path) as shim:
        with shim.raw() as hostile:
            for frame in frames:
                hostile.send(frame if isinstance(frame, bytes) else encode(frame))
            await asyncio.to_thread(received_to_the_end, hostile)
        result = await streams.run(shim.control, ["/bin/echo", "hi"], environment=PATH)
        assert result.stdout == b"hi\n"


async def test_data_beyond_the_credit_ends_the_connection(tmp_path):
    agent = scripted_agent("join()\nwhile True: take()")  # it grants none
    async with await ShimProcess.open(tmp_path, agent) as shim:
        with shim.raw() as hostile:
            hostile.send(encode(Frame(Kind.OPEN, TRANSIENT_ID_MIN, payload=shell("sleep 60"))))
            with contextlib.suppress(OSError):
                for number in range(8):
                    frame = Frame(
                        Kind.DATA, TRANSIENT_ID_MIN, Channel.IN, number << 16, bytes(1 << 16)
                    )
                    hostile.sendall(encode(frame))
            await asyncio.to_thread(received_to_the_end, hostile)
        await shim.control.request("note", text="alive")


def received_to_the_end(sock) -> list[Frame]:
    """Return what comes until the far end closes."""
    reader, frames = FrameReader(), []
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 16):
            frames += reader.feed(data)
    return frames


async def test_frames_that_crossed_a_streams_end_are_dropped(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        with shim.raw() as sock:
            number = TRANSIENT_ID_MIN
            sock.send(encode(Frame(Kind.OPEN, number, payload=shell("true"))))
            sock.send(encode(Frame(Kind.RESET, number)))
            for frame in (
                Frame(Kind.DATA, number, Channel.IN, 0, b"x"),
                Frame(Kind.EOF, number, Channel.IN, 1),
                Frame(Kind.CREDIT, number, Channel.OUT, 9),
                Frame(Kind.SIGNAL, number, value=9),
                Frame(Kind.RESET, number),
                Frame(Kind.SIGNAL, 3, value=9),
                Frame(Kind.REQUEST, 0, value=77, payload=pack_fields("note", [("text", "x")])),
            ):
                sock.send(encode(frame))
            reply = FrameReader().feed(await asyncio.to_thread(sock.recv, 4096))[-1]
            assert (reply.kind, reply.value) == (Kind.REPLY, 77)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("send(Kind.EXIT, 5)", id="speaks before it joins"),
        pytest.param("os.write(1, b'hello, world, this is no frame')", id="no frame"),
        pytest.param(
            "nonce(); send(Kind.JOIN, payload=pack_fields('', [('nonce', '0' * 32), ('version', '1')]))",
            id="wrong nonce",
        ),
        pytest.param(
            "n = nonce(); send(Kind.JOIN, payload=pack_fields('', [('nonce', n), ('version', '2')]))",
            id="wrong version",
        ),
        pytest.param("n = nonce(); send(Kind.JOIN, payload=n.encode())", id="no fields"),
        pytest.param("join(); send(Kind.JOIN)", id="joins unasked"),
        pytest.param("join(); send(Kind.REQUEST)", id="request"),
        pytest.param("join(); send(Kind.OPEN, 0x10000)", id="open"),
        pytest.param("join(); send(Kind.SIGNAL, 1)", id="signal"),
        pytest.param("join(); send(Kind.EXIT, 1)", id="durable stream of nobody"),
        pytest.param("join(); send(Kind.EXIT, 0x10000)", id="stream of nobody"),
        pytest.param("join(); send(Kind.DATA, 0)", id="stream 0"),
        pytest.param("join(); send(Kind.DATA, 0x9000, 1)", id="an id of nobody"),
    ],
)
async def test_an_agent_that_breaks_the_protocol_loses_its_vm(tmp_path, script):
    agent = scripted_agent(script + "\ntime.sleep(3600)")
    with contextlib.suppress(ShimError):
        async with await ShimProcess.open(tmp_path, agent, start=False) as shim:
            start = asyncio.ensure_future(shim.control.request("start"))
            assert "broke the protocol" in await ended(shim, EndCode.AGENT_DIED)
            await start


@pytest.mark.parametrize("is_durable", [True, False], ids=["durable", "transient"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("send(Kind.DATA, sid, 1, 1, b'x')", id="gap"),
        pytest.param(
            "send(Kind.DATA, sid, 1, 0, b'x'); send(Kind.DATA, sid, 1, 0, b'x')", id="again"
        ),
        pytest.param("send(Kind.DATA, sid, 1, 2**64 - 1, b'xyz')", id="overflow"),
        pytest.param("send(Kind.DATA, sid, 0, 0, b'x')", id="data in"),
        pytest.param("send(Kind.EOF, sid, 1, 5)", id="eof at another place"),
        pytest.param("send(Kind.EOF, sid, 2, 0); send(Kind.EOF, sid, 2, 0)", id="eof twice"),
        pytest.param(
            "send(Kind.EOF, sid, 2, 0); send(Kind.DATA, sid, 2, 0, b'x')", id="data after eof"
        ),
        pytest.param("send(Kind.CREDIT, sid, 1, 1 << 30)", id="credit out"),
        pytest.param("send(Kind.OPEN, sid)", id="open"),
    ],
)
async def test_an_agent_that_breaks_a_stream_loses_its_vm(tmp_path, script, is_durable):
    agent = scripted_agent(f"join()\n{STREAM}{script}\ntime.sleep(3600)")
    async with await ShimProcess.open(tmp_path, agent) as shim:
        if is_durable:
            await shim.control.open_durable(1, shell("true"))
        else:
            await shim.control.open_stream(shell("true"))
        assert "broke the protocol" in await ended(shim, EndCode.AGENT_DIED)


async def test_an_agent_beyond_its_credit_loses_its_vm(tmp_path):
    flood = "[send(Kind.DATA, sid, 1, i << 16, bytes(1 << 16)) for i in range(5)]"
    agent = scripted_agent(f"join()\n{STREAM}{flood}\ntime.sleep(3600)")
    async with await ShimProcess.open(tmp_path, agent) as shim:
        await shim.control.open_stream(shell("true"))
        assert "credit" in await ended(shim, EndCode.AGENT_DIED)


async def test_frames_of_the_agent_that_crossed_a_streams_end_are_dropped(tmp_path):
    late = "send(Kind.DATA, sid, 1, 7, b'x'); send(Kind.EXIT, sid); send(Kind.RESET, sid)\n"
    agent = scripted_agent(
        f"join()\n{STREAM}send(Kind.EXIT, sid)\n{late}{STREAM}take()\n{late}{STREAM}send(Kind.EXIT, sid)\n{late}take()"
    )
    async with await ShimProcess.open(tmp_path, agent) as shim:
        await shim.control.open_durable(1, shell("true"))
        await shim.control.exited(1)
        stream = await shim.control.open_stream(shell("true"))
        await stream.aclose()
        await shim.control.open_durable(2, shell("true"))
        await shim.control.exited(2)


async def test_an_agent_that_only_closes_its_link_died(tmp_path):
    agent = scripted_agent("join()\nos.close(0); os.close(1)\ntime.sleep(3600)")
    async with await ShimProcess.open(tmp_path, agent) as shim:
        assert "link" in await ended(shim, EndCode.AGENT_DIED)


async def test_last_words_of_the_agent_are_heard(tmp_path):
    agent = scripted_agent(
        f"join()\n{STREAM}send(Kind.DATA, sid, 1, 0, b'bye')\nsend(Kind.EXIT, sid, 0, 0)"
    )
    async with await ShimProcess.open(tmp_path, agent) as shim:
        await shim.control.open_durable(1, shell("true"))
        await ended(shim, EndCode.AGENT_DIED)
        assert read_stream(tmp_path, 1).is_over
        assert journaled(tmp_path, 1) == b"bye"
