"""A `magsd serve` as a process of its own, as an operator would run it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore
from tests import slot_nets

REPOSITORY = Path(__file__).resolve().parents[2]
MAGSD = Path(sys.executable).with_name("magsd")
MAGS = Path(sys.executable).with_name("mags")
IMAGE_CACHE = REPOSITORY / "build/images"
READY_S = 60.0
SLOT_NETS = range(10, 99)
"""The third bytes of their networks: what other suites use is not among them."""


def eventually(check: Callable[[], Any], within_s: float = 30.0, what: str = "") -> Any:
    """Return the first true result of `check`, asked again and again; fail after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        if result := check():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {within_s} s: {what or check}")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One data directory and the daemon that serves it, or does not at the moment."""

    token = "mags_end_to_end_tests_0123456789"

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "magsd.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.slot_net = slot_nets.reserve(SLOT_NETS)
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MAGS")},
            "MAGSD_DATA_DIR": str(self.data),
            "MAGSD_API_BIND": f"127.0.0.1:{self.port}",
            "MAGSD_APPS_BIND": "127.0.0.1:0",
            "MAGSD_SSH_BIND": "127.0.0.1:0",
            "MAGSD_TOKEN": self.token,
            "MAGSD_SLOT_NET": f"{self.slot_net}.0/24",
            **settings,
        }

    def add_image(self) -> None:
        """Put the image that set-up has built into the data directory."""
        build_standard(ImageStore(self.data), IMAGE_CACHE, False, lambda _: None)

    def start(self, *, is_ready: bool = True) -> None:
        """Start the daemon; return when a script can run."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [MAGSD, "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if is_ready:
            eventually(self.is_ready, READY_S, "the server is ready")

    def is_ready(self) -> bool:
        """Say whether the daemon says that it can run a script."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"magsd ended with {self.process.returncode}:\n{self.tail()}")
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End the daemon as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End the daemon as an operator would; return its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(timeout=30)

    def tail(self) -> str:
        """Return the end of the daemon's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])

    def http(self, token: str | None = None) -> httpx.Client:
        """Return a client of the API."""
        return httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {token or self.token}"},
            timeout=60,
        )

    def submit(self, script: str, **fields: Any) -> str:
        """Submit a script; return its job's id."""
        with self.http() as http:
            reply = http.post("/mags-jobs", json={"script": script, **fields})
        assert reply.status_code == 202, reply.text
        return str(reply.json()["request_id"])

    def status(self, job: str) -> dict[str, Any]:
        """Return a job's status."""
        with self.http() as http:
            reply = http.get(f"/mags-jobs/{job}/status")
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def running(self, job: str) -> dict[str, Any]:
        """Return the status of a job once it runs."""

        def check() -> dict[str, Any] | None:
            status = self.status(job)
            assert status["status"] in ("pending", "running"), status
            return status if status["status"] == "running" else None

        return dict(eventually(check, 60, f"{job} runs"))

    def final(self, job: str, within_s: float = 60.0) -> dict[str, Any]:
        """Return the status of a job once it is over."""
        deadline = time.monotonic() + within_s
        generation = -1
        with self.http() as http:
            while time.monotonic() < deadline:
                parameters = {"wait": 10, "after": generation}
                reply = http.get(f"/mags-jobs/{job}/status", params=parameters)
                assert reply.status_code == 200, reply.text
                status = dict(reply.json())
                if status["status"] in ("completed", "error"):
                    return status
                generation = status["generation"]
        raise AssertionError(f"{job} is not over within {within_s} s: {status}\n{self.tail()}")

    def log_entries(self, job: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return a job's log."""
        with self.http() as http:
            reply = http.get(f"/mags-jobs/{job}/logs", params=parameters)
        assert reply.status_code == 200, reply.text
        return list(reply.json()["logs"])

    def stdout(self, job: str) -> list[str]:
        """Return the lines that a job printed to stdout."""
        return [entry["message"] for entry in self.log_entries(job, source="stdout")]

    def run(self, script: str, within_s: float = 60.0, **fields: Any) -> dict[str, Any]:
        """Run a script to its end; return its final status with `stdout` and `log`."""
        job = self.submit(script, **fields)
        status = self.final(job, within_s)
        log = self.log_entries(job)
        lines = [entry["message"] for entry in log if entry["source"] == "stdout"]
        return {**status, "log": log, "stdout": lines}

    def vm_pid(self, status: dict[str, Any]) -> int:
        """Return the shim's process of a running job."""
        import json

        record = json.loads((self.data / "run" / status["vm_id"] / "record.json").read_text())
        return int(record["shim_pid"])


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Server]:
    """Serve a fresh data directory inside the block, and show the log when it fails."""
    server = Server(folder, **settings)
    server.add_image()
    try:
        server.start()
        yield server
    except BaseException:
        if server.log.exists():
            print(server.tail(), file=sys.stderr)
        raise
    finally:
        server.stop()
