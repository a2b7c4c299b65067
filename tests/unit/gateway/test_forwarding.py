"""What a server inside is told of a client, and what of a head is passed on."""

from ipaddress import ip_network

import pytest

from magsd.gateway.forwarding import Origin, answer_head, origin, request_head, trailers
from magsd.gateway.http_flow import parse_answer, parse_request
from tests.unit.gateway.corpus import CHUNKED, FIVE, request

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("::1/128"))


def told(fields, peer="10.0.0.1", is_encrypted=False):
    return origin(parse_request(request(fields)), peer, is_encrypted=is_encrypted, trusted=TRUSTED)


def passed(fields, line=b"POST / HTTP/1.1"):
    source = Origin((b"1.2.3.4",), b"1.2.3.4", b"http", b"a.test")
    head = request_head(parse_request(request(fields, line)), source)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def passed_back(fields, line=b"HTTP/1.1 200 OK", asked=b"", version=b"1.1", is_last=False):
    to = parse_request(request(asked, b"GET / HTTP/" + version))
    answer = parse_answer(line + b"\r\n" + fields + b"\r\n", b"GET")
    return answer_head(answer, to, is_last=is_last)[:-4].split(b"\r\n")


def test_a_stranger_is_not_believed():
    fields = (
        b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n"
        b"Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\n"
    )
    source = told(fields, peer="1.2.3.4")
    assert source == Origin((b"1.2.3.4",), b"1.2.3.4", b"http", b"a.test")
    head = request_head(parse_request(request(fields)), source)
    assert b"6.6.6.6" not in head
    assert b"evil" not in head
    assert b"X-Forwarded-For: 1.2.3.4\r\n" in head
    assert b"X-Forwarded-Proto: http\r\n" in head
    assert b"X-Forwarded-Host: a.test\r\n" in head
    assert b"X-Real-IP: 1.2.3.4\r\n" in head
    assert b'Forwarded: for=1.2.3.4;host="a.test";proto=http\r\n' in head


def test_a_trusted_proxy_is_believed():
    source = told(
        b"X-Forwarded-For: 6.6.6.6, 1.2.3.4\r\nX-Forwarded-For: 10.0.0.2\r\n"
        b"X-Forwarded-Proto: HTTPS\r\nX-Forwarded-Host: www.test\r\n"
    )
    chain = (b"6.6.6.6", b"1.2.3.4", b"10.0.0.2", b"10.0.0.1")
    # What stands before the last address that is not trusted, anybody may have written.
    assert source == Origin(chain, b"1.2.3.4", b"https", b"www.test")


def test_a_trusted_proxy_that_says_it_the_other_way():
    source = told(b'Forwarded: for=1.2.3.4;proto=http, For="[2001:db8::1]:80";by=x\r\n')
    assert source.chain == (b"1.2.3.4", b"2001:db8::1", b"10.0.0.1")
    assert source.client == b"2001:db8::1"
    both = told(b"Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 1.2.3.4\r\n")
    assert both.chain == (b"1.2.3.4", b"10.0.0.1")


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Forwarded-For: unknown, _hidden, evil\r\n",
        b"X-Forwarded-Proto: gopher\r\n",
        b"X-Forwarded-Proto: https\r\nX-Forwarded-Proto: https\r\n",
        b'X-Forwarded-Host: "x"; y\r\n',
    ],
)
def test_nonsense_of_a_trusted_proxy_is_left_out(fields):
    assert told(fields) == Origin((b"10.0.0.1",), b"10.0.0.1", b"http", b"a.test")


def test_addresses_of_the_other_kind():
    assert told(b"X-Forwarded-For: 1.2.3.4\r\n", peer="::1").client == b"1.2.3.4"
    assert told(b"X-Forwarded-For: 1.2.3.4:55\r\n", peer="::ffff:10.0.0.9").client == b"1.2.3.4"
    source = told(b"", peer="2001:db8::7", is_encrypted=True)
    assert source.protocol == b"https"
    head = request_head(parse_request(request(b"")), source)
    assert b'Forwarded: for="[2001:db8::7]";host="a.test";proto=https\r\n' in head


def test_what_is_about_the_connection_is_not_passed_on():
    lines = passed(
        b"Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n"
        b"Proxy-Authorization: x\r\nTE: trailers, gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
        b"X-Yours: 1\r\nCookie: a\r\nCookie: b\r\n"
    )
    assert lines[:5] == [
        b"POST / HTTP/1.1",
        b"Host: a.test",
        b"X-Yours: 1",
        b"Cookie: a",
        b"Cookie: b",
    ]
    rest = {line.partition(b":")[0] for line in lines[5:]}
    about = {b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Real-IP"}
    assert rest - {b""} == {*about, b"Forwarded", b"TE"}
    assert b"TE: trailers" in lines


def test_nobody_can_have_our_fields_removed():
    lines = passed(b"Connection: X-Forwarded-For, Host, Content-Length\r\n" + FIVE)
    assert b"X-Forwarded-For: 1.2.3.4" in lines
    assert b"Host: a.test" in lines
    assert b"Content-Length: 5" in lines


def test_the_framing_is_passed_on():
    assert b"Transfer-Encoding: chunked" in passed(CHUNKED)
    assert b"Content-Length: 0" in passed(b"Content-Length: 0\r\n")
    assert not any(b"Content-Length" in line for line in passed(b""))


def test_an_upgrade_is_passed_on():
    lines = passed(b"Connection: upgrade\r\nUpgrade: websocket\r\n")
    assert b"Upgrade: websocket" in lines
    assert b"Connection: Upgrade" in lines
    back = passed_back(
        b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"HTTP/1.1 101 Switching Protocols"
    )
    assert back == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
    ]


def test_an_answer_is_passed_back():
    fields = b"Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nSet-Cookie: a\r\n"
    assert passed_back(fields + FIVE) == [
        b"HTTP/1.1 200 OK",
        b"Set-Cookie: a",
        b"Content-Length: 5",
    ]
    assert passed_back(CHUNKED)[1:] == [b"Transfer-Encoding: chunked"]
    assert passed_back(b"")[1:] == [b"Transfer-Encoding: chunked"]
    assert passed_back(FIVE, is_last=True)[1:] == [b"Content-Length: 5", b"Connection: close"]
    assert passed_back(FIVE, b"HTTP/1.1 304 N")[1:] == [b"Content-Length: 5"]
    assert passed_back(b"Link: x\r\n", b"HTTP/1.1 103 E") == [b"HTTP/1.1 103 E", b"Link: x"]


def test_an_answer_for_an_old_client():
    assert passed_back(CHUNKED, version=b"1.0", is_last=True)[1:] == [b"Connection: close"]
    asked = b"Connection: keep-alive\r\n"
    kept = passed_back(FIVE, asked=asked, version=b"1.0")
    assert kept[1:] == [b"Content-Length: 5", b"Connection: keep-alive"]


def test_trailers_that_would_change_a_head():
    fields = [(b"X-Sum", b"1"), (b"Content-Length", b"5"), (b"X_Forwarded-For", b"6.6.6.6")]
    assert trailers(fields) == [(b"X-Sum", b"1")]
