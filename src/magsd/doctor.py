"""`magsd doctor`: what works on this machine, found out by running something real.

Each check says what it saw, and the next step when that is not well. Knows
no engine by name: the way to run a script in a sandbox is handed in.
"""

import asyncio
import os
import platform
import re
import shlex
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from magsd.config import Settings
from magsd.engine.cgroup import find_controllers
from magsd.engine.network import nft
from magsd.engine.network.layout import table_instance
from magsd.model.errors import MagsError
from magsd.model.lifecycle import Status
from magsd.model.records import JobStatus
from magsd.storage import apt_sources
from magsd.storage.images import ImageStore

_ARCHITECTURES: Final = ("x86_64", "aarch64")
_PACKAGE_OF_PROGRAM: Final = {
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
}
_CONTROLLERS: Final = ("memory", "pids", "cpu")
_SPACE_LEAST_GB: Final = 2
_SPACE_GOOD_GB: Final = 10
_HELLO: Final = "hello from a sandbox"
_SERVICE_S: Final = 5.0
_HOST_CONNECT_S: Final = 5.0
_CONNECT: Final = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
except socket.gaierror as error:
    sys.exit(f"the name cannot be resolved ({error})")
except OSError as error:
    sys.exit(f"no connection ({error})")
"""


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Scripts run, but something around them does not work."""
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was looked at, what was seen, and what to do."""

    what: str
    verdict: Verdict
    seen: str
    step: str = ""

    def line(self) -> str:
        """Return the check as a line for people."""
        step = f"; {self.step}" if self.step else ""
        return f"{self.verdict:4}  {self.what:9}  {' '.join(self.seen.split())}{step}"


@dataclass(frozen=True)
class Ran:
    """A script that has run in a sandbox."""

    status: JobStatus
    output: str
    """Standard output and error."""
    took_s: float
    """From the submit to the end."""


RunScript = Callable[[str], Awaitable[Ran]]


async def diagnose(
    settings: Settings, sandboxes: Callable[[], AbstractAsyncContextManager[RunScript]]
) -> AsyncIterator[Check]:
    """Yield checks, cheap ones first; those that need a sandbox only where one can run."""
    before = [root(), host(), cgroups(), programs(), space(settings.data_dir)]
    before += [await image(settings), await firewall(), await service(settings)]
    for check in before:
        yield check
    if any(check.verdict is Verdict.FAIL for check in before):
        yield Check("sandbox", Verdict.FAIL, "not tried", "mend what fails above")
        return
    try:
        async with sandboxes() as run:
            hello = _hello(await run(f"echo {_HELLO}"))
            yield hello
            if hello.verdict is Verdict.OK:
                yield await egress(run)
    except MagsError as error:
        yield Check("sandbox", Verdict.FAIL, f"{error.message} {error.detail}".strip())


def root() -> Check:
    """Look at who runs this."""
    if os.geteuid() == 0:
        return Check("user", Verdict.OK, "root")
    return Check("user", Verdict.FAIL, f"user id {os.geteuid()}", "run it as root, with sudo")


def host() -> Check:
    """Look at processor and kernel."""
    machine, kernel = platform.machine(), platform.release()
    seen = f"Linux {kernel} on {machine}, {os.cpu_count()} processors"
    if machine not in _ARCHITECTURES:
        return Check("host", Verdict.FAIL, seen, f"use one of {', '.join(_ARCHITECTURES)}")
    return Check("host", Verdict.OK, seen)


def cgroups() -> Check:
    """Look for what limits VMs, and for what freezes them."""
    found = find_controllers(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    wanted = [name for name in (*_CONTROLLERS, "freezer") if name in found]
    seen = ", ".join(f"{name} (v{found[name].version})" for name in wanted)
    if missing := [name for name in _CONTROLLERS if name not in found]:
        step = "mount cgroup2 at /sys/fs/cgroup, or enable them in the kernel"
        return Check("cgroups", Verdict.FAIL, f"no controller for {', '.join(missing)}", step)
    if "freezer" not in found:
        return Check("cgroups", Verdict.WARN, "no freezer: idle VMs cannot be frozen")
    return Check("cgroups", Verdict.OK, seen)


def programs() -> Check:
    """Look for the programs that the service starts, but the engine's."""
    missing = [name for name in _PACKAGE_OF_PROGRAM if shutil.which(name) is None]
    if not missing:
        return Check("programs", Verdict.OK, ", ".join(_PACKAGE_OF_PROGRAM))
    packages = " ".join(_PACKAGE_OF_PROGRAM[name] for name in missing)
    step = f"run `apt-get install {packages}`"
    return Check("programs", Verdict.FAIL, f"missing: {', '.join(missing)}", step)


def space(data_dir: Path) -> Check:
    """Look at the room for the data directory."""
    there = data_dir
    while not there.exists():
        there = there.parent
    free_gb = shutil.disk_usage(there).free / 1e9
    seen = f"{data_dir}, {free_gb:.0f} GB free"
    if free_gb < _SPACE_LEAST_GB:
        return Check("data", Verdict.FAIL, seen, "free some space, or set MAGSD_DATA_DIR")
    if free_gb < _SPACE_GOOD_GB:
        return Check("data", Verdict.WARN, seen, "jobs may write 2 GB each: give it more room")
    return Check("data", Verdict.OK, seen)


async def image(settings: Settings) -> Check:
    """Look at the standard image, and read all of it."""
    images = ImageStore(settings.data_dir)
    try:
        found = images.get(settings.standard_image)
        await images.verify(found)
    except MagsError as error:
        return Check("image", Verdict.FAIL, error.message)
    seen = f"{found.name}, {found.size_bytes / 1e6:.0f} MB, built {found.built_at:%Y-%m-%d}"
    return Check("image", Verdict.OK, seen)


async def firewall() -> Check:
    """Look for rules of others that would drop what VMs send."""
    try:
        listing = await asyncio.to_thread(nft.run, "list chains")
    except MagsError as error:
        return Check("firewall", Verdict.FAIL, error.message)
    if dropping := dropping_chains(listing):
        step = "let it accept what comes from and goes to interfaces mags*"
        seen = f"drops forwarded packets by default: {', '.join(dropping)}"
        return Check("firewall", Verdict.WARN, seen, step)
    return Check("firewall", Verdict.OK, "nothing of others drops forwarded packets by default")


async def service(settings: Settings) -> Check:
    """Look whether a service runs here, and ask it how it is."""
    url = f"http://{settings.api_bind}"
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_SERVICE_S) as client:
            reply = await client.get(f"{url}/readyz")
            reason = "" if reply.is_success else reply.json()["error"]
    except httpx.ConnectError:
        return Check("service", Verdict.OK, "not running; `magsd serve` starts it")
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        step = "set MAGSD_API_BIND to an address that is free"
        return Check("service", Verdict.WARN, f"something else answers at {url}", step)
    if reason:
        return Check("service", Verdict.WARN, f"runs at {url}, but is not ready: {reason}")
    return Check("service", Verdict.OK, f"runs at {url}")


_TABLE: Final = re.compile(r"table (\w+ (\S+)) \{")
_CHAIN: Final = re.compile(r"chain (\S+) \{")


def dropping_chains(listing: str) -> list[str]:
    """Return the foreign chains in what `nft list chains` prints whose policy for
    forwarded packets is to drop them."""
    found, table, chain, is_ours = [], "", "", False
    for line in map(str.strip, listing.splitlines()):
        if match := _TABLE.match(line):
            table, is_ours = match[1], table_instance(match[2]) is not None
        elif match := _CHAIN.match(line):
            chain = match[1]
        elif "hook forward" in line and "policy drop" in line and not is_ours:
            found.append(f"{table} {chain}")
    return found


def _hello(ran: Ran) -> Check:
    status = ran.status
    if status.status is Status.COMPLETED and ran.output.strip() == _HELLO:
        seen = f"{status.engine} ({status.isolation}) ran a script in {ran.took_s * 1000:.0f} ms"
        return Check("sandbox", Verdict.OK, seen)
    seen = f"{status.engine}: {status.error or 'the output was not as expected'} {ran.output}"
    return Check("sandbox", Verdict.FAIL, seen)


async def egress(run: RunScript) -> Check:
    """Connect from a sandbox to the host that this machine has its packages from."""
    mirrors = [urlsplit(source.uri) for source in apt_sources.read_sources()]
    target = next((url for url in mirrors if url.scheme in ("http", "https")), None)
    if target is None or target.hostname is None:
        return Check("egress", Verdict.WARN, "not tried: apt names no host to connect to")
    name, port = target.hostname, target.port or (443 if target.scheme == "https" else 80)
    if (refusal := await _host_reaches(name, port)) is not None:
        seen = f"not tried: this machine itself cannot reach {name} port {port} ({refusal})"
        return Check("egress", Verdict.WARN, seen)
    ran = await run(f"python3 -c {shlex.quote(_CONNECT)} {shlex.quote(name)} {port}")
    if ran.status.status is Status.COMPLETED:
        return Check("egress", Verdict.OK, f"a sandbox reaches {name} port {port}")
    step = "see `nft list ruleset`; private networks are opened by MAGSD_EGRESS_ALLOW"
    return Check("egress", Verdict.WARN, f"{name} port {port} from a sandbox: {ran.output}", step)


async def _host_reaches(name: str, port: int) -> str | None:
    try:
        async with asyncio.timeout(_HOST_CONNECT_S):
            _, writer = await asyncio.open_connection(name, port)
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return str(error)
    writer.close()
    return None
