"""A place outside that a guest can reach: the mirror of Debian that this machine uses itself."""

from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from magsd.storage import apt_sources


class Mirror(NamedTuple):
    """A server that answers HTTP, and a file that it has."""

    host: str
    file: str
    """A URL."""
    missing: str
    """A URL of the same server where there is nothing."""


def mirror() -> Mirror:
    """Return the first mirror of this machine's sources that speaks plain HTTP."""
    for source in apt_sources.read_sources():
        address = urlsplit(source.uri)
        if address.scheme == "http" and address.hostname:
            root = source.uri.rstrip("/")
            file = f"{root}/dists/{source.suite}/Release"
            return Mirror(address.hostname, file, f"{root}/no-such-file")
    pytest.fail("this machine's apt sources name no mirror that speaks plain HTTP")
