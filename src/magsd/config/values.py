"""Kinds of values that settings have, and how they are written."""

import re
from ipaddress import ip_address
from typing import Final, NamedTuple

from typing_extensions import override

from magsd.engine.network.rules import Allowance

_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN: Final = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_DOMAIN_MAX: Final = 189
"""A label of 63 and a dot come before it."""


class Bind(NamedTuple):
    """An address to listen at."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_everywhere(self) -> bool:
        """Whether it is all addresses of the machine."""
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False


def bind(value: object) -> object:
    """Read HOST:PORT; anything but text is left as it is. Raises `ValueError`."""
    if not isinstance(value, str):
        return value
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:7070")
    return Bind(host, int(port))


def separated(value: object) -> object:
    """Take text apart at commas and spaces; anything else is left as it is."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


def domain(value: str) -> str:
    """Return a name of the DNS in lower case. Raises `ValueError` for what is none."""
    name = value.lower()
    if len(name) > _DOMAIN_MAX or _DOMAIN.fullmatch(name) is None:
        raise ValueError("must be a domain, such as apps.example.org")
    return name


def allowances(value: object) -> object:
    """Read networks separated by commas or spaces, or a list of them. Raises `ValueError`."""
    entries = separated(value)
    if isinstance(entries, list):
        for entry in entries:
            Allowance.parse(str(entry))
    return entries
