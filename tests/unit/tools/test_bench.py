"""What the bench makes of its samples."""

import asyncio

import pytest
from bench.load import read_reply, request_of
from bench.measure import Samples, in_turn, table


def test_median_and_p99():
    samples = Samples("x", [float(value) for value in range(1, 201)])

    assert samples.median == 100.5
    assert samples.p99 == 199
    assert Samples("few", [3.0, 1.0, 2.0]).p99 == 3.0


async def test_subjects_are_measured_in_turn_and_warm():
    order = []

    def subject(name):
        async def once():
            order.append(name)
            return float(len(order))

        return once

    first, second = await in_turn({"a": subject("a"), "b": subject("b")}, 2, warm_up=1)

    assert order == ["a", "b"] * 3
    assert (first.values_ms, second.values_ms) == ([3.0, 5.0], [4.0, 6.0])


def test_ratios_are_to_the_first():
    shown = table("title", [Samples("slow", [10.0]), Samples("quick", [2.5])])

    assert shown.splitlines()[-1].split()[-1] == "0.25"


async def test_a_reply_is_read_to_its_end_and_no_further():
    reader = asyncio.StreamReader()
    reader.feed_data(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n")

    assert await read_reply(reader) == (202, b"{}")
    with pytest.raises(ValueError, match="without Content-Length"):
        await read_reply(reader)


def test_a_request_names_its_length():
    request = request_of("http://127.0.0.1:7070", "t", "POST", "/mags-jobs", b"{}")

    assert request.startswith(b"POST /api/v1/mags-jobs HTTP/1.1\r\nHost: 127.0.0.1:7070\r\n")
    assert request.endswith(b"Content-Length: 2\r\n\r\n{}")
