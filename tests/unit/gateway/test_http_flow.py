"""Heads: what is taken, how it is framed, and that nothing is taken that could be read twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.gateway.http_flow import (
    AnswerError,
    Body,
    FlowError,
    Framing,
    head_end,
    parse_answer,
    parse_request,
)
from tests.unit.gateway.corpus import AMBIGUOUS, CHUNKED, FIVE, HOST, OTHERS, request


def answer(fields=b"", line=b"HTTP/1.1 200 OK", method=b"GET"):
    return parse_answer(line + b"\r\n" + fields + b"\r\n", method)


@pytest.mark.parametrize("head", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(head):
    with pytest.raises(FlowError) as refused:
        parse_request(head)
    assert refused.value.status in (400, 501)


@pytest.mark.parametrize(("head", "status"), OTHERS.values(), ids=OTHERS)
def test_what_is_not_done_here(head, status):
    with pytest.raises(FlowError) as refused:
        parse_request(head)
    assert refused.value.status == status


def test_a_plain_request():
    head = parse_request(b"GET /a?b=c HTTP/1.1\r\nHost: A.Test.:8080\r\nAccept: text/html\r\n\r\n")
    assert (head.method, head.target, head.host) == (b"GET", b"/a?b=c", "a.test")
    assert head.authority == b"A.Test.:8080"
    assert head.body == Body(Framing.NONE)
    assert head.keeps_alive
    assert head.reads_html
    assert not head.awaits_continue


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"", Body(Framing.NONE)),
        (FIVE, Body(Framing.LENGTH, 5)),
        (b"Content-Length: 0\r\n", Body(Framing.LENGTH, 0)),
        (CHUNKED, Body(Framing.CHUNKED)),
        (b"transfer-encoding:CHUNKED \r\n", Body(Framing.CHUNKED)),
    ],
)
def test_the_framing_of_a_request(fields, body):
    assert parse_request(request(fields)).body == body


@pytest.mark.parametrize(
    ("version", "fields", "keeps"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: x, Close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
    ],
)
def test_whether_the_connection_is_kept(version, fields, keeps):
    assert parse_request(request(fields, b"GET / HTTP/" + version)).keeps_alive is keeps


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"GET http://a.test/b HTTP/1.1", b"/b"),
        (b"GET HTTPS://A.test HTTP/1.1", b"/"),
        (b"GET http://a.test?b HTTP/1.1", b"/?b"),
        (b"OPTIONS * HTTP/1.1", b"*"),
        (b"PROPFIND /b HTTP/1.1", b"/b"),
    ],
)
def test_the_target(line, target):
    assert parse_request(request(b"", line)).target == target


def test_an_address_as_host():
    assert parse_request(b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").host == "[::1]"


def test_an_upgrade():
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    assert parse_request(request(offer)).upgrade == b"websocket"
    assert parse_request(request(b"Upgrade: websocket\r\n")).upgrade is None
    assert parse_request(request(offer + FIVE)).upgrade is None
    java = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
    assert parse_request(request(java)).upgrade is None


def test_an_expectation():
    expects = b"Expect: 100-Continue\r\n"
    assert parse_request(request(FIVE + expects)).awaits_continue
    assert not parse_request(request(expects)).awaits_continue
    assert not parse_request(request(FIVE + expects, b"POST / HTTP/1.0")).awaits_continue


@pytest.mark.parametrize(
    ("fields", "method", "line", "body"),
    [
        (b"", b"GET", b"HTTP/1.1 200 OK", Body(Framing.UNTIL_END)),
        (FIVE, b"GET", b"HTTP/1.1 200", Body(Framing.LENGTH, 5)),
        (CHUNKED, b"GET", b"HTTP/1.1 200 OK", Body(Framing.CHUNKED)),
        (FIVE, b"HEAD", b"HTTP/1.1 200 OK", Body(Framing.NONE)),
        (FIVE, b"GET", b"HTTP/1.1 304 Not Modified", Body(Framing.NONE)),
        (b"", b"GET", b"HTTP/1.1 204 No Content", Body(Framing.NONE)),
        (b"", b"GET", b"HTTP/1.1 103 Early Hints", Body(Framing.NONE)),
    ],
)
def test_the_framing_of_an_answer(fields, method, line, body):
    assert answer(fields, line, method).body == body


def test_whether_a_server_keeps_its_connection():
    assert answer(FIVE).keeps_alive
    assert not answer(FIVE + b"Connection: close\r\n").keeps_alive
    assert not answer().keeps_alive
    assert not answer(FIVE, b"HTTP/1.0 200 OK").keeps_alive
    assert answer(FIVE + b"Connection: keep-alive\r\n", b"HTTP/1.0 200 OK").keeps_alive


@pytest.mark.parametrize(
    "head",
    [
        b"hello\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + FIVE + CHUNKED + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + FIVE + FIVE + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0\r\n\r\n",
    ],
)
def test_an_answer_that_is_none(head):
    with pytest.raises(AnswerError):
        parse_answer(head, b"GET")


@given(st.binary(max_size=300))
def test_nothing_but_a_refusal_comes_of_garbage(data):
    head = data + b"\r\n\r\n"
    with pytest.raises(FlowError):
        parse_request(head)
    with pytest.raises(AnswerError):
        parse_answer(head, b"GET")


@given(st.lists(st.sampled_from([b"\r", b"\n", b" ", b"\t", b":", b"a", FIVE, CHUNKED, HOST])))
def test_fields_made_of_what_frames_are(parts):
    """What is taken has one host, and one framing at most."""
    head = b"POST / HTTP/1.1\r\n" + b"".join(parts) + b"\r\n\r\n"
    end = head_end(head, 0)
    assert end is not None
    try:
        taken = parse_request(head[:end])
    except FlowError:
        return
    lines = head[: end - 4].split(b"\r\n")[1:]
    assert all(b":" in line and line[:1] not in b" \t" for line in lines)
    names = [line.partition(b":")[0].lower() for line in lines]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert (taken.body.framing is Framing.CHUNKED) == (b"transfer-encoding" in names)


@given(st.integers(1, 40))
def test_the_end_of_a_head_is_found_wherever_it_was_cut(size):
    data = request(FIVE) + b"hello"
    buffer = bytearray()
    for at in range(0, len(data), size):
        searched = len(buffer)
        buffer += data[at : at + size]
        if (end := head_end(buffer, searched)) is not None:
            assert buffer[:end] == request(FIVE)
            return
    raise AssertionError("not found")
