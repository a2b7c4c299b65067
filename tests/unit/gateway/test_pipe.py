"""The socket between node and edge: whole messages, sockets beside them, and what breaks it."""

import asyncio
import os
import socket

import pytest

from magsd.gateway.pipe import Pipe

DEADLINE_S = 10


class End:
    """One end, and what it was told."""

    def __init__(self, sock, **options):
        self.messages = []
        self.reasons = []
        self.pipe = Pipe(
            sock,
            on_message=self.messages.append,
            on_end=self.reasons.append,
            **{"message_max": 1000, **options},
        )
        self.pipe.start()

    async def until(self, check):
        async with asyncio.timeout(DEADLINE_S):
            while not check():
                await asyncio.sleep(0)


@pytest.fixture
async def ends():
    left, right = socket.socketpair()
    pair = End(left), End(right, takes_sockets=True)
    yield pair
    for end in pair:
        end.pipe.end("the test is over")


@pytest.fixture
async def raw():
    """An end, and the bare socket of the other side."""
    left, right = socket.socketpair()
    end = End(left)
    yield end, right
    end.pipe.end("the test is over")
    right.close()


async def test_messages_arrive_whole_and_in_order(ends):
    left, right = ends
    sent = [bytes([number]) * (number * 3) for number in range(200)]
    for message in sent:
        left.pipe.send(message)
    await right.until(lambda: len(right.messages) == len(sent))
    assert right.messages == sent


async def test_sockets_travel_with_their_messages(ends):
    left, right = ends
    carried = [socket.socketpair() for _ in range(20)]
    for number, (_, theirs) in enumerate(carried):
        left.pipe.send(b"%d" % number, theirs)
        left.pipe.send(b"without")
    await right.until(lambda: len(right.messages) == 2 * len(carried))
    for number, (ours, theirs) in enumerate(carried):
        assert theirs.fileno() == -1
        with right.pipe.take_socket() as taken, ours:
            assert not os.get_inheritable(taken.fileno())
            ours.send(b"for %d" % number)
            assert taken.recv(10) == b"for %d" % number
    with pytest.raises(ValueError, match="without the socket"):
        right.pipe.take_socket()


async def test_a_message_in_pieces_is_one(raw):
    end, sock = raw
    for byte in b"\0\0\0\5hello\0\0\0\0":
        sock.send(bytes([byte]))
        await asyncio.sleep(0)
    await end.until(lambda: len(end.messages) == 2)
    assert end.messages == [b"hello", b""]


async def test_one_that_is_too_long_ends_it(raw):
    end, sock = raw
    sock.send(b"\0\0\3\xe9")
    await end.until(lambda: end.reasons)
    assert "1001 bytes" in end.reasons[0]
    assert sock.recv(1) == b""
    end.pipe.send(b"nobody is there")
    end.pipe.end("again")
    assert len(end.reasons) == 1


async def test_a_receiver_that_refuses_ends_it(raw):
    end, sock = raw

    def refuse(_message):
        raise ValueError("not that")

    end.pipe._on_message = refuse
    sock.send(b"\0\0\0\1x" * 3)
    await end.until(lambda: end.reasons)
    assert end.reasons == ["the protocol was broken: not that"]


async def test_descriptors_that_nobody_asked_for_are_closed(raw):
    end, sock = raw
    read, write = os.pipe()
    socket.send_fds(sock, [b"\0\0\0\1x"], [write] * 50)
    os.close(write)
    await end.until(lambda: end.messages)
    # The last of its writers is gone.
    assert os.read(read, 1) == b""
    os.close(read)


async def test_who_does_not_read_is_given_up(raw):
    end, _ = raw
    ours, theirs = socket.socketpair()
    end.pipe.send(b"", ours)
    for _ in range(10_000):
        end.pipe.send(b"x" * 1000)
    end.pipe.send(b"", theirs)
    assert end.reasons == ["the other side does not read"]
    assert theirs.fileno() == -1


async def test_what_waits_leaves_when_there_is_room(raw):
    end, sock = raw
    sent = b"".join(b"\0\0\3\xe8" + bytes([number % 251]) * 1000 for number in range(3000))
    for number in range(3000):
        end.pipe.send(bytes([number % 251]) * 1000)
    sock.setblocking(False)
    loop, received = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(DEADLINE_S):
        while len(received) < len(sent):
            received += await loop.sock_recv(sock, 1 << 20)
    assert received == sent
    assert end.pipe.end_reason is None


async def test_the_other_sides_end_is_told(raw):
    end, sock = raw
    sock.close()
    await end.until(lambda: end.reasons)
    assert end.reasons == ["the other side closed it"]
