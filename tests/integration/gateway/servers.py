"""Programs of others as processes, for the gateway's tests."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.integration.shim_process import DEADLINE_S, REPOSITORY

CADDY = Path(sys.executable).with_name("caddy")
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(
    command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> AsyncIterator[None]:
    """Have a program run inside the block, which has begun when it listens on a port."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await _listens(port):
                assert process.returncode is None, (await process.stdout.read()).decode()
                await asyncio.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def nginx(folder: Path, upstream: int) -> AsyncIterator[int]:
    """Have nginx in front of a port, as `deploy/nginx.conf` says; yield its port."""
    port = free_port()
    site = (REPOSITORY / "deploy/nginx.conf").read_text(encoding="utf-8")
    for said, meant in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port};"),
        ("127.0.0.1:7071", f"127.0.0.1:{upstream}"),
        ("*.apps.example.com", "*.apps.test"),
    ):
        assert said in site
        site = site.replace(said, meant)
    lines = [line for line in site.splitlines() if "ssl_certificate" not in line]
    folder.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log;\n"
        f"events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; {temporary}\n" + "\n".join(lines) + "\n}\n",
        encoding="utf-8",
    )
    async with running([NGINX, "-c", str(config), "-e", f"{folder}/log"], port):
        yield port


@asynccontextmanager
async def caddy(folder: Path, upstream: int, ask: int) -> AsyncIterator[int]:
    """Have Caddy in front of a port, as `deploy/Caddyfile` says; yield its port for HTTPS.

    Its certificates come from an authority of its own, not from the Internet.
    """
    port = free_port()
    environment = {
        "MAGS_APPS_DOMAIN": "apps.test",
        "MAGS_APPS": f"127.0.0.1:{upstream}",
        "MAGS_API": f"127.0.0.1:{ask}",
        "MAGS_CERTIFICATES": "internal",
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "HOME": str(folder),
    }
    folder.mkdir()
    text = (REPOSITORY / "deploy/Caddyfile").read_text(encoding="utf-8")
    own = "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n"
    own += f"\thttps_port {port}\n\thttp_port {free_port()}\n\tlocal_certs\n"
    assert text.count("\n{\n") == 1
    config = folder / "Caddyfile"
    config.write_text(text.replace("\n{\n", "\n" + own), encoding="utf-8")
    command = [str(CADDY), "run", "--adapter", "caddyfile", "--config", str(config)]
    async with running(command, port, environment):
        yield port
