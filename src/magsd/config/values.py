"""Kinds of values that settings have, and how they are written."""

from typing import NamedTuple

from typing_extensions import override

from magsd.engine.network.rules import Allowance


class Bind(NamedTuple):
    """An address to listen at."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def bind(value: object) -> object:
    """Read HOST:PORT; anything but text is left as it is. Raises `ValueError`."""
    if not isinstance(value, str):
        return value
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:7070")
    return Bind(host, int(port))


def allowances(value: object) -> object:
    """Read networks separated by commas or spaces, or a list of them. Raises `ValueError`."""
    entries = value.replace(",", " ").split() if isinstance(value, str) else value
    if isinstance(entries, list):
        for entry in entries:
            Allowance.parse(str(entry))
    return entries
