"""Forwarding on the host's uplinks: switched on for the slots, put back afterwards.

Which uplinks did not forward before is noted in a table of the kernel's that
all instances of a host share: it survives a crash, the first instance to stop
does not cut off the others, and it ends with the host's boot, as the settings
do. The same table keeps the host from becoming a router for its neighbours.

Only `conf/<interface>/forwarding` is set, never the host-wide `ip_forward`,
which would set it on every interface.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from magsd.engine.network import nft, rules
from magsd.engine.network.namespaces import read_setting, write_setting
from magsd.model.errors import LaunchError

_NAME: Final = re.compile(r'"([^"]+)"')


class Forwarding:
    """The uplinks' forwarding, in the network namespace of the calling thread."""

    def __init__(self, directory: Path) -> None:
        """`directory` is where the instances of the host keep each other out."""
        self._directory = directory

    def switch_on(self, uplinks: Iterable[str]) -> None:
        """Let `uplinks` forward, and note which did not before. Raises `LaunchError`.

        Nothing but the slots' traffic may then pass through those, unless the
        host has become a router of its own meanwhile (`ip_forward` is on).
        """
        with self._alone():
            closed = {name for name in uplinks if _read(name) == "0"}
            # First the note, then the deed: a crash in between puts back what is.
            if opened := _noted() | closed:
                nft.run(rules.uplinks_table(sorted(opened), is_router=_is_router()))
            for name in closed:
                _set(name, "1")

    def put_back(self, is_last: Callable[[], bool]) -> None:
        """Let the uplinks be as they were, if `is_last`: no other instance needs them.

        That is asked under the lock under which others switch on.
        """
        with self._alone():
            if not is_last():
                return
            if not _is_router():
                for name in _noted():
                    _set(name, "0")
            nft.run(rules.no_table(rules.UPLINKS_TABLE))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _noted() -> set[str]:
    if f"table inet {rules.UPLINKS_TABLE}" not in nft.run("list tables inet").splitlines():
        return set()
    return set(_NAME.findall(nft.run(f"list set inet {rules.UPLINKS_TABLE} opened")))


def _setting(interface: str) -> str:
    return f"ipv4/conf/{interface}/forwarding"


def _read(interface: str) -> str | None:
    try:
        return read_setting(_setting(interface))
    except FileNotFoundError:  # gone meanwhile
        return None


def _set(interface: str, value: str) -> None:
    try:
        write_setting(_setting(interface), value)
    except FileNotFoundError:
        pass  # gone meanwhile
    except OSError as error:
        raise LaunchError(
            f"forwarding on {interface} could not be changed: "
            f"is this process root, and is /proc/sys writable?",
            repr(error),
        ) from error


def _is_router() -> bool:
    return read_setting("ipv4/ip_forward") == "1"
