"""Requests and answers, byte for byte: scripted servers behind real agents."""

import asyncio
import hashlib
import os

import pytest

from magsd.gateway.ingress_settings import IngressSettings
from magsd.model.errors import CapacityError, ConflictError, NotFoundError
from tests.integration.gateway.world import (
    GET,
    HOST,
    World,
    answering,
    echo,
    read_answer,
    read_head,
)
from tests.integration.shim_process import until
from tests.unit.gateway.corpus import AMBIGUOUS, BAD_CHUNKS
from tests.unit.gateway.corpus import HOST as CORPUS_HOST

BIG = os.urandom(1 << 16) * 40


def post(fields, body=b"", version=b"1.1"):
    host = HOST.encode()
    return b"POST / HTTP/%b\r\nHost: %b\r\n%b\r\n%b" % (version, host, fields, body)


async def test_many_requests_on_one_connection(world: World):
    await world.serve(answering())
    await world.start()
    reader, writer = await world.connect()
    for _ in range(3):
        writer.write(GET)
        head, body = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == b"hello"
        await world.no_lease()
    assert world.node.leased.total() == 3


async def test_pipelined_requests_are_answered_in_order(world: World):
    await world.serve(echo)
    await world.start()
    reader, writer = await world.connect()
    wanted = [str(number).encode() * 3 for number in range(20)]
    for body in wanted:
        fields = b"Content-Length: %d\r\n" % len(body)
        writer.write(post(fields, body) + b"\r\n")
    assert [(await read_answer(reader))[1] for _ in wanted] == wanted


async def test_a_name_that_is_not_published_wakes_nothing(world: World):
    await world.serve(answering())
    await world.start()
    reader, writer = await world.connect()
    for host in (b"other.test", b"", b"a.b.c.d"):
        if host:
            writer.write(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            head, body = await read_answer(reader)
            assert head.startswith(b"HTTP/1.1 404 ")
            assert b'"error"' in body
    assert world.node.leased.total() == 0
    writer.write(GET)
    assert (await read_answer(reader))[1] == b"hello"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CapacityError("it wakes"), b"503"),
        (ConflictError("it ends"), b"503"),
        (NotFoundError("it is gone"), b"404"),
    ],
)
async def test_a_vm_that_cannot_be_had(world: World, error, status):
    await world.serve(answering())
    await world.start()
    world.node.refusal = error
    reader, writer = await world.connect()
    writer.write(GET.replace(b"\r\n\r\n", b"\r\nAccept: text/html\r\n\r\n") + GET)
    head, page = await read_answer(reader)
    assert head.startswith(b"HTTP/1.1 " + status)
    assert error.message.encode() in page
    assert (b"Retry-After" in head, b'http-equiv="refresh"' in page) == ((status == b"503"),) * 2
    assert b"text/html" in head
    head, plain = await read_answer(reader)
    assert plain == b'{"error": "%b"}' % error.message.encode()


async def test_a_port_that_is_closed_is_named(world: World, unused_tcp_port):
    await world.publish(unused_tcp_port)
    await world.start()
    reader, writer = await world.connect()
    writer.write(GET)
    head, body = await read_answer(reader)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert f"port {unused_tcp_port} ".encode() in body


async def test_a_port_that_opens_late_in_a_vm_that_was_woken(world: World, unused_tcp_port):
    await world.publish(unused_tcp_port)
    await world.start(IngressSettings(startup_s=60))
    reader, writer = await world.connect()
    writer.write(GET)
    await until(lambda: world.node.leased.total() == 1)
    await world.listen(answering(), unused_tcp_port)
    assert (await read_answer(reader))[1] == b"hello"


@pytest.mark.parametrize("head", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_is_ambiguous_ends_the_connection(world: World, head):
    reached = []

    async def handler(reader, writer):
        reached.append(await reader.read())

    await world.serve(handler, "a.test")
    await world.start()
    answer = await world.say(head + b"GET /smuggled HTTP/1.1\r\n" + CORPUS_HOST + b"\r\n")
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert answer.count(b"Connection: close") == 1
    assert reached == []


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
async def test_chunks_that_are_none_end_the_connection(world: World, body):
    heads = []

    async def handler(reader, writer):
        heads.append(await read_head(reader))
        await reader.read()

    await world.serve(handler)
    await world.start()
    answer = await world.say(post(b"Transfer-Encoding: chunked\r\n", body) + GET)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"Connection: close") == 1
    assert len(heads) <= 1


async def test_a_body_in_chunks_both_ways(world: World):
    await world.serve(echo)
    await world.start()
    body = b"5;x=y\r\nhello\r\n3\r\n wo\r\n0\r\nX-Sum: 8\r\nContent-Length: 1\r\n\r\n"
    reader, writer = await world.connect()
    writer.write(post(b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", body) + GET)
    head = await read_head(reader)
    assert b"Transfer-Encoding: chunked" in head
    rest = await reader.readuntil(b"0\r\nX-Sum: 8\r\n\r\n")
    assert b"hello" in rest
    assert (await read_answer(reader))[1] == b""


async def test_large_bodies_both_ways(world: World):
    await world.serve(echo)
    await world.start()
    for fields, body in (
        (b"Content-Length: %d\r\n" % len(BIG), BIG),
        (b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BIG), BIG)),
    ):
        reader, writer = await world.connect()
        writer.write(post(fields + b"Connection: close\r\n", body))
        head = await read_head(reader)
        digest = hashlib.sha256()
        if b"chunked" in head:
            while size := int(await reader.readline(), 16):
                digest.update(await reader.readexactly(size))
                await reader.readexactly(2)
        else:
            digest.update(await reader.read())
        assert digest.digest() == hashlib.sha256(BIG).digest()


async def test_an_old_client(world: World):
    await world.serve(echo)
    await world.start()
    answer = await world.say(post(b"Content-Length: 5\r\n", b"hello", b"1.0"))
    assert answer.endswith(b"\r\n\r\nhello")
    reader, writer = await world.connect()
    for _ in range(2):
        writer.write(post(b"Content-Length: 2\r\nConnection: keep-alive\r\n", b"hi", b"1.0"))
        head, body = await read_answer(reader)
        assert b"Connection: keep-alive" in head
        assert body == b"hi"


async def test_an_answer_in_chunks_for_an_old_client(world: World):
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    await world.serve(saying(chunks))
    await world.start()
    answer = await world.say(GET.replace(b"1.1", b"1.0"))
    assert answer.endswith(b"Connection: close\r\n\r\nhello")


async def test_an_answer_until_the_end_keeps_the_connection(world: World):
    await world.serve(saying(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nhello"))
    await world.start()
    reader, writer = await world.connect()
    for _ in range(2):
        writer.write(GET)
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200 OK\r\nX: y\r\n")
        await reader.readuntil(b"0\r\n\r\n")


async def test_an_answer_to_head(world: World):
    await world.serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"))
    await world.start()
    reader, writer = await world.connect()
    for _ in range(2):
        writer.write(GET.replace(b"GET", b"HEAD"))
        assert b"Content-Length: 5000" in await read_head(reader)
    writer.write(b"HEAD / HTTP/1.1\r\nHost: other\r\n\r\n")
    assert b"HTTP/1.1 404 " in await read_head(reader)
    writer.write(GET.replace(b"GET", b"HEAD"))
    assert b"HTTP/1.1 200 " in await read_head(reader)


async def test_interim_answers_are_passed(world: World):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    await world.serve(saying(hints + b"HTTP/1.1 204 No Content\r\n\r\n"))
    await world.start()
    reader, writer = await world.connect()
    writer.write(GET)
    assert await read_head(reader) == hints
    assert await read_head(reader) == b"HTTP/1.1 204 No Content\r\n\r\n"
    old = await world.say(GET.replace(b"1.1", b"1.0"))
    assert old.startswith(b"HTTP/1.1 204 ")


async def test_the_server_says_whether_to_continue(world: World):
    async def handler(reader, writer):
        head = await read_head(reader)
        assert b"Expect: 100-continue" in head
        if b"/refused" in head:
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)

    await world.serve(handler)
    await world.start()
    expecting = post(b"Content-Length: 5\r\nExpect: 100-continue\r\n")
    reader, writer = await world.connect()
    writer.write(expecting)
    assert await read_head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hello")
    assert (await read_answer(reader))[1] == b"hello"
    refused = await world.say(expecting.replace(b"POST /", b"POST /refused"))
    assert refused.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in refused


async def test_an_answer_before_the_body_was_read(world: World):
    async def handler(reader, writer):
        await read_head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")

    await world.serve(handler)
    await world.start()
    answer = await world.say(post(b"Content-Length: 100000000\r\n", BIG))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"big")


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n",
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_that_breaks_off_does_not_look_whole(world: World, broken, version):
    await world.serve(saying(broken))
    await world.start()
    with pytest.raises(ConnectionResetError):
        await world.say(GET.replace(b"1.1", version))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    ],
)
async def test_an_answer_that_is_none(world: World, wrong):
    await world.serve(saying(wrong))
    await world.start()
    reader, writer = await world.connect()
    writer.write(GET)
    head = await read_head(reader)
    while head.startswith(b"HTTP/1.1 103 "):
        head = await read_head(reader)
    assert head.startswith(b"HTTP/1.1 502 ")


async def test_a_vm_that_is_lost_before_the_answer(world: World):
    async def handler(reader, writer):
        await read_head(reader)
        world.kill_vm()
        await reader.read()

    await world.serve(handler)
    await world.start()
    reader, writer = await world.connect()
    writer.write(GET)
    head, body = await read_answer(reader)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"the VM ended" in body


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_vm_that_is_lost_within_the_answer(world: World, version):
    async def handler(reader, writer):
        await read_head(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
        await reader.read()

    await world.serve(handler)
    await world.start()
    reader, writer = await world.connect()
    writer.write(GET.replace(b"1.1", version))
    await reader.readuntil(b"hello")
    world.kill_vm()
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_a_connection_that_the_server_has_closed_meanwhile(world: World):
    """Each request gets its answer, also that which meets the end of a kept connection."""

    async def handler(reader, writer):
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await read_head(reader)  # It takes a second one, and leaves.

    await world.serve(handler)
    await world.start()
    reader, writer = await world.connect()
    for _ in range(6):
        writer.write(GET)
        assert (await read_answer(reader))[1] == b"hello"


async def test_connections_into_a_vm_are_kept_and_closed(world: World):
    begun, ended = [], []

    async def handler(reader, writer):
        begun.append(writer)
        try:
            await answering()(reader, writer)
        finally:
            ended.append(writer)

    await world.serve(handler)
    await world.start(IngressSettings(upstream_idle_s=0.2, drain_s=0.1))
    reader, writer = await world.connect()
    for _ in range(5):
        writer.write(GET)
        await read_answer(reader)
    await until(lambda: len(ended) == len(begun))
    assert len(begun) < 5
    writer.write(GET)
    assert (await read_answer(reader))[1] == b"hello"


async def test_a_client_that_leaves_ends_its_request(world: World):
    ended = asyncio.Event()

    async def handler(reader, writer):
        await read_head(reader)
        try:
            await reader.read()
        finally:
            ended.set()

    await world.serve(handler)
    await world.start()
    _, writer = await world.connect()
    writer.write(GET)
    await until(lambda: world.leases() == 1)
    writer.close()
    await world.no_lease()
    await ended.wait()


async def test_a_slow_reader_holds_the_server_back_and_nobody_else(world: World):
    sent = 0

    async def handler(reader, writer):
        nonlocal sent
        if b"/big" not in await read_head(reader):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while sent < 1_000_000_000:
            writer.write(BIG)
            await writer.drain()
            sent += len(BIG)

    await world.serve(handler)
    await world.start()
    slow, writer = await world.connect(limit=1 << 16)
    writer.write(GET.replace(b"GET /", b"GET /big"))
    await read_head(slow)
    before = -1
    while sent != before:
        before = sent
        for _ in range(10):
            other, to_other = await world.connect()
            to_other.write(GET)
            assert (await read_answer(other))[1] == b"hello"
    assert sent < 100_000_000
    writer.transport.abort()
    await world.no_lease()


async def test_a_client_that_sends_no_body_is_not_waited_for(world: World):
    async def handler(reader, writer):
        await reader.read()

    await world.serve(handler)
    await world.start(IngressSettings(stall_s=0.1, drain_s=0.1))
    answer = await world.say(post(b"Content-Length: 5\r\n", b"he"))
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_server_that_does_not_answer_is_not_waited_for(world: World):
    async def handler(reader, writer):
        await reader.read()

    await world.serve(handler)
    await world.start(IngressSettings(answer_s=0.1, drain_s=0.1))
    reader, writer = await world.connect()
    writer.write(GET)
    assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 504 ")


async def test_a_thousand_requests_at_once(world: World):
    most = now = 0

    async def handler(reader, writer):
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            await read_head(reader)
            await asyncio.sleep(0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        finally:
            now -= 1

    await world.serve(handler)
    await world.start(IngressSettings(streams_per_vm=40, drain_s=0.1))

    async def once():
        reader, writer = await world.connect()
        writer.write(GET)
        answer = await read_answer(reader)
        writer.close()
        return answer[1]

    answers = await asyncio.gather(*(once() for _ in range(1000)))
    assert answers == [b"hi"] * 1000
    assert most <= 40


def saying(data):
    async def handler(reader, writer):
        await read_head(reader)
        writer.write(data)
        await writer.drain()

    return handler
