"""Several connections to one shim: ids, scope, limits, and who does not read."""

import asyncio
import contextlib

import pytest

from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.guest.wire import STREAMS_MAX, TRANSIENT_ID_MIN, Frame, Kind, encode, pack_fields
from tests.integration.shim_process import (
    DEADLINE_S,
    ShimProcess,
    is_alive,
    resident_bytes,
    scripted_agent,
    shell,
    until,
)

PATH = {"PATH": "/usr/bin:/bin"}


async def test_connections_have_stream_ids_of_their_own(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        others = [await shim.connect() for _ in range(2)]
        connections = [shim.control, *others]
        async with asyncio.timeout(DEADLINE_S):
            results = await asyncio.gather(
                *(
                    streams.run(
                        connection, ["/bin/cat"], environment=PATH, stdin=bytes([n]) * 1_000_000
                    )
                    for n, connection in enumerate(connections)
                    for _ in range(2)
                )
            )
        assert [set(r.stdout) for r in results] == [{0}, {0}, {1}, {1}, {2}, {2}]
        assert all(len(r.stdout) == 1_000_000 and r.wait_status == 0 for r in results)


async def test_a_connections_streams_end_with_it(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        other = await shim.connect()
        stream = await other.open_stream(shell("echo $$; exec sleep 60"))
        await stream.read()
        sleeping = [p for p in shim.processes() if p != shim.engine()]
        assert sleeping
        await shim.control.open_durable(1, shell("echo on; sleep 60"))
        await shim.control.journal_grown(16)
        await other.aclose()
        await until(lambda: not any(is_alive(pid) for pid in sleeping))
        assert not shim.control.durable(1).is_over


async def test_verbs_are_a_closed_list(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        other = await shim.connect()
        for verb, fields in [
            ("reboot", {}),
            ("", {}),
            ("hello", {"version": "2"}),
            ("hello", {"version": "1", "vm": "vm-2"}),
            ("hello", {"version": "1", "vm": "vm-1", "epoch": "8"}),
            ("start", {}),
            ("freeze", {"deadline_ms": "100"}),
            ("fence", {"deadline_ms": "-1"}),
            ("fence", {"deadline_ms": "99999999999999999999"}),
            ("fence", {}),
            ("note", {}),
        ]:
            with pytest.raises(ShimError):
                await other.request(verb, **fields)
        with pytest.raises(ShimError, match="once"):
            await shim.control.request("start")
        greeting = await other.request("hello", version="1", vm="vm-1", epoch="7")
        assert greeting.get("agent") == "1"


async def test_a_scoped_connection_may_use_streams_only(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        other = await shim.connect()
        await other.request("scope")
        for verb in ("hello", "note", "fence", "kill", "scope"):
            with pytest.raises(ShimError, match="streams only"):
                await other.request(verb, version="1", text="x", deadline_ms="0")
        result = await streams.run(other, ["/bin/echo", "hi"], environment=PATH)
        assert result.stdout == b"hi\n"
        with pytest.raises(ShimError):
            await other.open_durable(1, shell("true"))
        await other.closed()
        await shim.control.request("note", text="alive")


async def test_a_connection_too_many_is_closed_and_the_others_go_on(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        with contextlib.ExitStack() as stack:
            for _ in range(63):
                sock = stack.enter_context(shim.raw())
            assert stack.enter_context(shim.raw()).recv(1) == b""
            sock.send(
                encode(
                    Frame(
                        Kind.REQUEST, 0, value=3, payload=pack_fields("hello", [("version", "1")])
                    )
                )
            )
            assert sock.recv(24)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with contextlib.suppress(ShimError):
                    await (await shim.connect()).request("note", text="room again")
                    break


async def test_too_many_streams_are_refused(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        opened = [
            await shim.control.open_stream(shell("exec sleep 60")) for _ in range(STREAMS_MAX)
        ]
        extra = await shim.control.open_stream(shell("true"))
        with pytest.raises(ShimError, match="too many"):
            await extra.exit()
        with pytest.raises(ShimError, match="too many"):
            await shim.control.open_durable(1, shell("true"))
        await opened[0].aclose()
        assert (await streams.run(shim.control, ["/bin/true"], environment=PATH)).wait_status == 0


async def test_who_does_not_read_disturbs_nobody(tmp_path):
    size = 1_000_000_000
    async with await ShimProcess.open(tmp_path) as shim:
        with shim.raw() as deaf:
            deaf.send(
                encode(
                    Frame(
                        Kind.REQUEST, 0, value=1, payload=pack_fields("hello", [("version", "1")])
                    )
                )
            )
            for number in range(8):
                deaf.send(
                    encode(
                        Frame(
                            Kind.OPEN,
                            TRANSIENT_ID_MIN + number,
                            payload=shell("exec cat /dev/zero"),
                        )
                    )
                )
            stream = await shim.control.open_stream(shell(f"exec head -c {size} /dev/zero"))
            total = 0
            async with asyncio.timeout(DEADLINE_S * 10):
                while data := await stream.read():
                    total += len(data)
            assert total == size
            assert (await stream.exit()).value == 0
            assert resident_bytes(shim.pid) < 16 << 20
        await shim.control.request("note", text="alive")


def floods(sock, data: bytes) -> bool:
    """Return whether a hundred megabytes of `data` are taken without a pause of 0.2 s."""
    sock.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        for _ in range(100_000_000 // len(data)):
            sock.sendall(data)
        return True
    return False


async def test_who_asks_without_reading_answers_costs_little(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        request = encode(Frame(Kind.REQUEST, 0, value=1, payload=pack_fields("x" * 90)))
        with shim.raw() as deaf:
            assert not floods(deaf, request * 20)
            assert resident_bytes(shim.pid) < 24 << 20
            await shim.control.request("note", text="alive")


async def test_an_agent_that_does_not_read_costs_little(tmp_path):
    agent = scripted_agent("join()\ntime.sleep(3600)")
    async with await ShimProcess.open(tmp_path, agent) as shim:
        signals = encode(Frame(Kind.SIGNAL, TRANSIENT_ID_MIN, value=1)) * 1000
        with shim.raw() as flood:
            flood.sendall(encode(Frame(Kind.OPEN, TRANSIENT_ID_MIN, payload=shell("true"))))
            assert not floods(flood, signals)
            assert resident_bytes(shim.pid) < 24 << 20
            await shim.control.request("note", text="alive")
