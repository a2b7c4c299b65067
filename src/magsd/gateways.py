"""What is put together for the ways from outside: listening sockets, and the edges behind them."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Final

from magsd.aio import Clock
from magsd.config import Bind, Settings
from magsd.core.doors import Doors
from magsd.gateway.edges import Edges, EdgeSettings, Listeners, unprivileged
from magsd.gateway.host_key import host_key
from magsd.gateway.ssh_settings import SshSettings
from magsd.metrics import Metrics
from magsd.model.errors import InvalidError

_USER: Final = "mags"
"""Whom edges run as where there is such a user."""
_VM_USERS: Final = 65_536
_BACKLOG: Final = 4096


@contextmanager
def listening(settings: Settings) -> Iterator[tuple[Settings, Listeners | None]]:
    """Listen where strangers are to arrive, inside the block.

    Yields the settings with the ports that there are now; no listeners when
    there are to be no edges. Raises `InvalidError` that names the setting.
    """
    if not settings.edges:
        yield settings, None
        return
    with ExitStack() as undo:
        apps = undo.enter_context(_listener("APPS_BIND", settings.apps_bind))
        ssh = undo.enter_context(_listener("SSH_BIND", settings.ssh_bind))
        bound = {
            "apps_bind": settings.apps_bind._replace(port=apps.getsockname()[1]),
            "ssh_bind": settings.ssh_bind._replace(port=ssh.getsockname()[1]),
        }
        yield settings.model_copy(update=bound), Listeners(apps, ssh)


@asynccontextmanager
async def opened(
    settings: Settings, listeners: Listeners | None, doors: Doors, clock: Clock, metrics: Metrics
) -> AsyncIterator[None]:
    """Have the edges run inside the block, where there are listeners."""
    if listeners is None:
        yield
        return
    edges = Edges(_edge_settings(settings), listeners, doors, clock)
    edges.on_end = metrics.edge_ended
    metrics.watch_edges(lambda: (edges.count, edges.leases))
    doors.trouble = edges.trouble
    edges.start()
    try:
        yield
    finally:
        await edges.aclose()


def introduction(settings: Settings) -> Iterator[str]:
    """Yield lines for the operator: what can be reached where."""
    if not settings.edges:
        yield "  gateways none: nothing in a VM can be reached from outside (EDGES is 0)"
        return
    port = f":{settings.shown_apps_port}" if settings.shown_apps_port else ""
    shown = f"{settings.shown_scheme}://*.{settings.apps_domain}{port}"
    yield f"  urls     {shown}  (served at {settings.apps_bind})"
    yield f"  ssh      {settings.ssh_bind}"


def _edge_settings(settings: Settings) -> EdgeSettings:
    return EdgeSettings(
        count=settings.edges,
        rights=unprivileged(_USER, settings.vm_uid_base + _VM_USERS),
        log_level=settings.log_level,
        ingress=settings.ingress(),
        ssh=SshSettings(host_key=host_key(settings.data_dir / "ssh_host_key")),
    )


def _listener(name: str, address: Bind) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise InvalidError(
            f"cannot listen at {address}: {why}; set MAGSD_{name} to an address that is free, or "
            "MAGSD_EDGES=0 to publish nothing"
        ) from None
