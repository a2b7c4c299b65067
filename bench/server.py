"""A `magsd serve` of the bench's own, in a folder that is removed afterwards."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from bench.scrape import Scrape
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord
from magsd.engines import QEMU
from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore
from magsd.storage.kernel_package import install_kernel

REPOSITORY: Final = Path(__file__).resolve().parent.parent
IMAGES: Final = REPOSITORY / "build/images"
KERNELS: Final = REPOSITORY / "build/kernel"
SERVE: Final = (sys.executable, "-m", "magsd", "serve")
_READY_S: Final = 60.0
_STOP_S: Final = 60.0
_REST_S: Final = 60.0


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    url: str
    token: str
    pid: int
    data: Path
    pool_min: int

    def cpu_s(self) -> float:
        """Return the processor time that the daemon itself has used, without its VMs."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self, which: str = "VmRSS") -> float:
        """Return the daemon's resident memory; with `VmHWM` the most since `forget_peak`."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(which):
                return int(line.split()[1]) / 1024
        raise LookupError(f"no {which}")

    def forget_peak(self) -> None:
        """Begin anew with what `VmHWM` says."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def scrape(self) -> Scrape:
        """Return what `/metrics` says; nothing where the server has none."""
        reply = httpx.get(
            f"{self.url}/metrics",
            headers={"Authorization": f"Bearer {self.token}"},
            trust_env=False,
        )
        return Scrape.of(reply.text if reply.status_code == 200 else "")

    async def at_rest(self, alive: int = 0) -> None:
        """Return when no job has a VM but `alive` of them, and the pool is full.

        What one sample leaves to be done, such as another VM for the pool,
        must not be in the next. Ends the bench when that does not come.
        """
        deadline = time.monotonic() + _REST_S
        while time.monotonic() < deadline:
            lives = sum(entry.is_dir() for entry in os.scandir(self.data / "run"))
            # The pool may want more than the least while it remembers a demand.
            if lives >= alive + self.pool_min:
                waiting = self.scrape().total("mags_vms", state="idle") if self.pool_min else 0
                if waiting + alive == lives:
                    return
            await asyncio.sleep(0.01)
        raise SystemExit(f"bench: the server at {self.url} does not come to rest")


@contextmanager
def serving(
    folder: Path,
    *,
    slot_net: str = "",
    pool_min: int = 0,
    engine: str,
    settings: Mapping[str, str] | None = None,
    command: Sequence[str] = SERVE,
) -> Iterator[Server]:
    """Serve a directory inside the block; made, with the image, where there is none."""
    data = folder / "data"
    build_standard(ImageStore(data), IMAGES, False, lambda _: None)
    add_kernel(data, engine)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, token = f"http://127.0.0.1:{port}", _token(folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAGS")}
    environment |= {
        "MAGSD_DATA_DIR": str(data),
        "MAGSD_API_BIND": f"127.0.0.1:{port}",
        "MAGSD_APPS_BIND": "127.0.0.1:0",
        "MAGSD_SSH_BIND": "127.0.0.1:0",
        "MAGSD_TOKEN": token,
        "MAGSD_ENGINE": engine,
        **({"MAGSD_SLOT_NET": slot_net} if slot_net else {}),
        **(settings or {}),
    }
    log = folder / "magsd.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, url, log)
        yield Server(url, token, process.pid, data, pool_min)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_S)
        _end_vms(data)


def _end_vms(data: Path) -> None:
    """End the VMs of a server that has ended: they outlive it, and a part that failed leaves some."""
    for directory in (data / "run").iterdir():
        record = VmRecord.read(directory)
        shim = record and Detached.find(record.shim_pid, record.shim_start_time)
        if shim is not None:
            shim.send_signal(signal.SIGKILL)
            shim.close()


def add_kernel(data: Path, engine: str) -> None:
    """Give a data directory the kernel that `engine` needs; set-up has got it.

    With another one's a server would try KVM while something else is measured.
    """
    if engine == QEMU:
        install_kernel(data, KERNELS, lambda _: None)


def _token(folder: Path) -> str:
    """Return the token of a folder's server, which may be started there again."""
    path = folder / "token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mags_{secrets.token_hex(20)}")
    return path.read_text()


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.01)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise SystemExit(f"bench: the server is not ready:\n{tail}")
