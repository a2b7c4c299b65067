"""HTTP/1.1 as the gateway takes it: heads, and what frames the body behind one. No I/O.

Strict, so that nobody before or behind the gateway can see another end of a
message than it does: what may be read in two ways is refused. Heads are cut
out here and read by llhttp (`httptools`); bodies are in `http_body`, what is
passed on of a head is decided in `forwarding`.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

import httptools

Field = tuple[bytes, bytes]
"""A header field: its name as it came, and its value."""

FIELDS_MAX: Final = 128
_END: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"([A-Z-]{1,32}) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*))?\r\n")
_CONTROLS: Final = bytes(set(range(32)) - set(b"\t\r\n")) + b"\x7f"
_FOLDS: Final = (b"\r\n ", b"\r\n\t")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_HOST: Final = re.compile(rb"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?]*)(.*)")
_NO_BODY: Final = frozenset({204, 304})
_UPGRADE_NEVER: Final = frozenset({b"h2c", b"h2"})
SWITCHING: Final = 101


class FlowError(Exception):
    """A request that is not carried out as it was sent. `status` is what to answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class AnswerError(Exception):
    """What a server inside a VM sent is no HTTP/1 answer, or is not whole."""


class Framing(Enum):
    """What tells the end of a body."""

    NONE = auto()
    """There is none."""
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_END = auto()
    """The connection's end: of answers only."""


class Body(NamedTuple):
    """How a body is framed."""

    framing: Framing
    length: int = 0
    """Bytes, of one that is framed by it."""

    @property
    def is_empty(self) -> bool:
        """Nothing of it follows the head."""
        return self.framing is Framing.NONE or (self.framing is Framing.LENGTH and self.length == 0)


_NOTHING: Final = Body(Framing.NONE)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a request that can be passed on."""

    method: bytes
    target: bytes
    """In origin form, or `*`."""
    host: str
    """Lower case, without port and trailing dot."""
    authority: bytes
    """The field `Host` as it came."""
    is_newest: bool
    """HTTP/1.1 and not HTTP/1.0."""
    fields: list[Field]
    lists: frozenset[bytes]
    """What the field `Connection` names, lower case."""
    body: Body
    keeps_alive: bool
    """The client would send another request on this connection."""
    awaits_continue: bool
    """It sends the body when it is told to, or when it has waited for long enough."""
    upgrade: bytes | None
    """The protocols it would go on in."""
    reads_html: bool


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The head of an answer of a server inside a VM."""

    status: int
    reason: bytes
    fields: list[Field]
    lists: frozenset[bytes]
    body: Body
    keeps_alive: bool

    @property
    def is_interim(self) -> bool:
        """Another head follows it."""
        return self.status < 200 and self.status != SWITCHING


def head_end(data: bytes | bytearray, searched: int) -> int | None:
    """Return where the head ends that `data` begins with, behind its empty line; None if it has
    not come. `searched`: how many bytes were looked through before."""
    found = data.find(_END, max(0, searched - len(_END) + 1))
    return None if found < 0 else found + len(_END)


def parse_request(head: bytes) -> RequestHead:
    """Read the head of a request, its empty line included. Raises `FlowError`."""
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise FlowError(400, "the request does not begin as HTTP/1.1 does")
    method, target, major, minor = line.groups()
    if (major, minor) not in ((b"1", b"1"), (b"1", b"0")):
        raise FlowError(505, "this server speaks HTTP/1.1: use that version")
    if method == b"CONNECT":
        raise FlowError(405, "CONNECT is not done here: send a request for a path")
    if (problem := _shape_problem(head)) is not None:
        raise FlowError(400, problem)
    events = _Events()
    try:
        httptools.HttpRequestParser(events).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # It goes on in HTTP only when the server answers so.
    except httptools.HttpParserInvalidMethodError as error:
        raise FlowError(501, "this server does not know the method of the request") from error
    except httptools.HttpParserError as error:
        raise FlowError(400, f"the head of the request is not valid: {error}") from error
    return _request(method, target, minor == b"1", events.fields)


def parse_answer(head: bytes, method: bytes) -> AnswerHead:
    """Read the head of an answer to a request made by `method`. Raises `AnswerError`."""
    line = _STATUS_LINE.match(head)
    if line is None:
        raise AnswerError("what the server sent does not begin as HTTP/1 does")
    if (problem := _shape_problem(head)) is not None:
        raise AnswerError(problem)
    events = _Events()
    try:
        httptools.HttpResponseParser(events).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise AnswerError(f"the head of the answer is not valid: {error}") from error
    minor, status, reason = line.groups()
    return _answer(int(status), reason or b"", minor == b"1", events.fields, method)


class _Events:
    """What the parser says of one head."""

    def __init__(self) -> None:
        self.fields: list[Field] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.strip(b" \t")))


def _shape_problem(head: bytes) -> str | None:
    """Return what is wrong with the bytes of a head, whatever they say.

    The parser refuses most of this too. That it does is not left to its
    version: these are what lets two programs see two messages.
    """
    lines = head.count(b"\r\n")
    if head.count(b"\n") != lines or head.count(b"\r") != lines:
        return "a line of the head does not end with CR LF"
    if any(fold in head for fold in _FOLDS):
        return "a header field goes on in the next line"
    if len(head.translate(None, _CONTROLS)) != len(head):
        return "the head has a control character in it"
    if lines - 2 > FIELDS_MAX:
        return f"the head has more than {FIELDS_MAX} fields"
    return None


def _request(method: bytes, target: bytes, is_newest: bool, fields: list[Field]) -> RequestHead:
    names = _by_name(fields)
    lists = _tokens(names.get(b"connection", []))
    authority = _authority(names.get(b"host", []))
    body = _request_body(names, is_newest)
    expects = [value.lower() for value in names.get(b"expect", [])]
    if expects not in ([], [b"100-continue"]):
        raise FlowError(417, "this server can meet no expectation but `100-continue`")
    return RequestHead(
        method=method,
        target=_origin_form(target, method, authority),
        host=_host(authority),
        authority=authority,
        is_newest=is_newest,
        fields=fields,
        lists=lists,
        body=body,
        keeps_alive=b"close" not in lists and (is_newest or b"keep-alive" in lists),
        awaits_continue=bool(expects) and is_newest and not body.is_empty,
        upgrade=_upgrade(names, lists) if is_newest and body.is_empty else None,
        reads_html=any(b"text/html" in value.lower() for value in names.get(b"accept", [])),
    )


def _answer(
    status: int, reason: bytes, is_newest: bool, fields: list[Field], method: bytes
) -> AnswerHead:
    names = _by_name(fields)
    lists = _tokens(names.get(b"connection", []))
    body = _answer_body(status, names, is_newest)
    if method == b"HEAD" or status in _NO_BODY or status < 200:
        body = _NOTHING
    is_kept = b"close" not in lists and (is_newest or b"keep-alive" in lists)
    return AnswerHead(
        status=status,
        reason=reason,
        fields=fields,
        lists=lists,
        body=body,
        keeps_alive=is_kept and body.framing is not Framing.UNTIL_END,
    )


def _by_name(fields: list[Field]) -> dict[bytes, list[bytes]]:
    names: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        names.setdefault(name.lower(), []).append(value)
    return names


def _tokens(values: list[bytes]) -> frozenset[bytes]:
    """Return the members of fields that are lists, lower case."""
    return frozenset(
        token for value in values for part in value.lower().split(b",") if (token := part.strip())
    )


def _authority(hosts: list[bytes]) -> bytes:
    if len(hosts) != 1:
        how_many = "no field" if not hosts else "more than one field"
        raise FlowError(400, f"the request has {how_many} `Host`: send exactly one")
    if _HOST.fullmatch(hosts[0]) is None:
        raise FlowError(400, "the field `Host` does not name a host")
    return hosts[0]


def _host(authority: bytes) -> str:
    name = authority if authority.endswith(b"]") else authority.rpartition(b":")[0] or authority
    return name.decode("ascii").lower().removesuffix(".")


def _origin_form(target: bytes, method: bytes, authority: bytes) -> bytes:
    """Return the path that a request is for. Raises `FlowError` when it is for another host."""
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise FlowError(400, "the request is for no path: it must begin with `/`")
    named, rest = absolute.groups()
    if named.lower() != authority.lower():
        raise FlowError(400, "the request and its field `Host` name different hosts")
    return rest if rest.startswith(b"/") else b"/" + rest


def _request_body(names: dict[bytes, list[bytes]], is_newest: bool) -> Body:
    lengths, codings = names.get(b"content-length", []), names.get(b"transfer-encoding", [])
    if codings:
        if lengths:
            raise FlowError(400, "`Content-Length` beside `Transfer-Encoding`: send one of them")
        if not is_newest:
            raise FlowError(400, "`Transfer-Encoding` is not of HTTP/1.0")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise FlowError(501, "the only `Transfer-Encoding` known here is `chunked`")
        return Body(Framing.CHUNKED)
    if not lengths:
        return _NOTHING
    if (length := _length(lengths)) is None:
        raise FlowError(400, "`Content-Length` is not one number")
    return Body(Framing.LENGTH, length)


def _answer_body(status: int, names: dict[bytes, list[bytes]], is_newest: bool) -> Body:
    lengths, codings = names.get(b"content-length", []), names.get(b"transfer-encoding", [])
    if codings:
        if lengths or not is_newest or len(codings) != 1 or codings[0].lower() != b"chunked":
            raise AnswerError("the end of the answer's body can be told in more than one way")
        return Body(Framing.CHUNKED)
    if not lengths:
        return Body(Framing.UNTIL_END)
    if (length := _length(lengths)) is None:
        raise AnswerError("the answer's `Content-Length` is not one number")
    return Body(Framing.LENGTH, length)


def _length(values: list[bytes]) -> int | None:
    if len(values) != 1 or _LENGTH.fullmatch(values[0]) is None:
        return None
    return int(values[0])


def _upgrade(names: dict[bytes, list[bytes]], lists: frozenset[bytes]) -> bytes | None:
    """Return the protocols that a client would go on in: but never HTTP/2, which is not cut up
    into requests here."""
    offers = names.get(b"upgrade", [])
    if len(offers) != 1 or b"upgrade" not in lists or _tokens(offers) & _UPGRADE_NEVER:
        return None
    return offers[0]
