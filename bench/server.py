"""A `magsd serve` of the bench's own, in a folder that is removed afterwards."""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = REPOSITORY / "build/images"
SLOT_NET = "198.19.253.0/24"
READY_S = 60.0
STOP_S = 60.0


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    url: str
    token: str
    pid: int
    data: Path

    def cpu_s(self) -> float:
        """Return the processor time that the daemon itself has used, without its VMs."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Return the daemon's resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise LookupError("no VmRSS")

    def is_idle(self) -> bool:
        """Say whether no VM is left of it."""
        return not any(entry.is_dir() for entry in (self.data / "run").iterdir())

    def http(self) -> httpx.Client:
        """Return a client of the API."""
        return httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=120,
            trust_env=False,
        )


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a fresh data directory inside the block."""
    data = folder / "data"
    build_standard(ImageStore(data), IMAGES, False, lambda _: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, token = f"http://127.0.0.1:{port}", f"mags_{secrets.token_hex(20)}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAGS")}
    environment |= {
        "MAGSD_DATA_DIR": str(data),
        "MAGSD_API_BIND": f"127.0.0.1:{port}",
        "MAGSD_TOKEN": token,
        "MAGSD_SLOT_NET": SLOT_NET,
    }
    log = folder / "magsd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [REPOSITORY / ".venv/bin/magsd", "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, url, log)
        yield Server(url, token, process.pid, data)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise SystemExit(f"bench: the server is not ready:\n{tail}")
