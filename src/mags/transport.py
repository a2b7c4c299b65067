"""One HTTP connection pool to one server: requests, errors, event streams.

Knows HTTP and nothing of jobs. Every failure leaves here as `MagsError`.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from mags.errors import MagsError

RETRIES: Final = 2
"""Repeats of a request that is safe to repeat, when its connection broke."""
_STORED_S: Final = 120.0
"""How long a server may take to store what was uploaded."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class ServerEvent(NamedTuple):
    """One event of a text/event-stream."""

    event: str
    id: str
    data: Any


class Download(NamedTuple):
    """Content on its way."""

    size_bytes: int | None
    """None when it is not known before the end."""
    pieces: Iterator[bytes]


class Transport:
    """Requests to `api_url` with a bearer token."""

    def __init__(self, api_url: str, api_token: str, timeout_s: float) -> None:
        self.api_url = api_url
        self._timeout_s = timeout_s
        parts = urlsplit(api_url)
        self._http = httpx.Client(
            base_url=f"{api_url}/api/v1",
            headers={"Authorization": f"Bearer {api_token}"},
            timeout=timeout_s,
            # Reading all authorities takes 40 ms, for which plain HTTP has no use.
            verify=parts.scheme == "https",
            # A proxy that the environment names does not lead to this machine's own server.
            trust_env=parts.hostname not in _LOOPBACK,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the decoded reply of one request.

        A GET, and whatever carries an `Idempotency-Key`, is repeated when its
        connection broke. Raises `MagsError` for refusals and for an unreachable server.
        """
        is_repeatable = method == "GET" or "Idempotency-Key" in (headers or {})
        request = self._http.build_request(
            method,
            path,
            json=json,
            params=params,
            headers=headers,
            timeout=timeout_s if timeout_s is not None else httpx.USE_CLIENT_DEFAULT,
        )
        response = self._send(request, RETRIES if is_repeatable else 0)
        _raise_for_status(response)
        return _decode(response)

    def upload_file(self, path: str, name: str, content: IO[bytes]) -> Any:
        """Return the decoded reply to a form with one file, which is read as it is sent.

        Raises as `request`.
        """
        # The server answers when it has all of it, and has stored it.
        timeout = httpx.Timeout(self._timeout_s, read=max(self._timeout_s, _STORED_S))
        request = self._http.build_request(
            "POST", path, files={"file": (name, content)}, timeout=timeout
        )
        response = self._send(request, 0)
        _raise_for_status(response)
        return _decode(response)

    def _send(self, request: httpx.Request, repeats: int) -> httpx.Response:
        try:
            return self._http.send(request)
        except httpx.TransportError as error:
            # A server that is slow is not helped by more of the same.
            if repeats == 0 or isinstance(error, httpx.TimeoutException):
                raise self._unreachable(error) from error
        return self._send(request, repeats - 1)

    def events(
        self,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        last_id: str | None = None,
        silence_s: float = 60.0,
    ) -> Iterator[ServerEvent]:
        """Yield the events of a stream until the server ends it.

        A connection without a byte for `silence_s` counts as lost. Raises
        `MagsError`; one whose `status_code` is None may be resumed with `last_id`.
        """
        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        timeout = httpx.Timeout(self._timeout_s, read=silence_s)
        try:
            with self._http.stream(
                "GET", path, params=params, headers=headers, timeout=timeout
            ) as response:
                if response.is_error:
                    response.read()
                _raise_for_status(response)
                yield from _parse_events(_lines(response.iter_bytes()))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    @contextmanager
    def download(
        self, path: str, *, params: dict[str, Any] | None = None, silence_s: float
    ) -> Iterator[Download]:
        """Give the content of a reply piece by piece, inside the block.

        A connection without a byte for `silence_s` counts as lost. Raises
        `MagsError`, also when the content ends early.
        """
        timeout = httpx.Timeout(self._timeout_s, read=silence_s)
        try:
            with self._http.stream("GET", path, params=params, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                _raise_for_status(response)
                length = response.headers.get("content-length")
                yield Download(int(length) if length else None, response.iter_raw())
        except httpx.RemoteProtocolError as error:
            raise MagsError(
                f"{self.api_url} ended the answer early: try again", code="unreachable"
            ) from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def upload(
        self,
        path: str,
        content: Iterable[bytes],
        *,
        size_bytes: int | None,
        params: dict[str, Any] | None = None,
        silence_s: float,
    ) -> Any:
        """Send content, of a size that may not be known, and return the decoded reply.

        An answer that takes longer than `silence_s` counts as lost. Raises `MagsError`.
        """
        headers = {"Content-Type": "application/octet-stream"}
        if size_bytes is not None:
            headers["Content-Length"] = str(size_bytes)
        request = self._http.build_request(
            "POST",
            path,
            content=content,
            params=params,
            headers=headers,
            timeout=httpx.Timeout(self._timeout_s, read=silence_s),
        )
        response = self._send(request, 0)
        _raise_for_status(response)
        return _decode(response)

    def _unreachable(self, error: httpx.TransportError) -> MagsError:
        if isinstance(error, httpx.TimeoutException):
            return MagsError(f"{self.api_url} did not answer in time", code="unreachable")
        return MagsError(
            f"cannot reach {self.api_url} ({error}); is the server running, and is "
            "MAGS_API_URL right?",
            code="unreachable",
        )


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # httpx's own splitter also ends a line at U+2028 and its like, which JSON may contain.
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")


def _parse_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    event, event_id = "message", ""
    data: list[str] = []
    for line in lines:
        if not line:
            # Without data it is no event, but a comment that keeps the connection alive.
            if data:
                yield ServerEvent(event, event_id, _decode_event("\n".join(data)))
            event, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            event = value
        elif field == "id":
            event_id = value
        elif field == "data":
            data.append(value)


def _decode_event(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise MagsError(f"an event of the server is not JSON: {data[:80]!r}") from error


def _raise_for_status(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    message = body.get("error") or body.get("message")
    if not message:
        message = response.text.strip() or response.reason_phrase
        message = f"the server answered {response.status_code}: {message[:300]}"
    raise MagsError(str(message), response.status_code, body.get("code"))


def _decode(response: httpx.Response) -> Any:
    if not response.content:
        return {}
    try:
        return response.json()
    except ValueError as error:
        raise MagsError(
            f"the answer of {response.url} is not JSON; is MAGS_API_URL the address of a "
            "Mags server?",
            response.status_code,
        ) from error
