"""What all groups of methods of a client share: a transport, and replies that are objects."""

from typing import Any

from mags.errors import MagsError
from mags.transport import Transport

JsonObject = dict[str, Any]


class Calls:
    """Requests whose replies are JSON objects."""

    _transport: Transport

    def _object(self, method: str, path: str, **request: Any) -> JsonObject:
        return checked(self._transport.request(method, path, **request), f"{method} {path}")


def checked(reply: Any, what: str) -> JsonObject:
    """Return a reply that is an object. Raises `MagsError` for any other."""
    if not isinstance(reply, dict):
        raise MagsError(f"{what}: the server's answer is not a JSON object")
    return reply
