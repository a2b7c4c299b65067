"""What one would do without this project: `runsc run` with a plain bundle on the same image."""

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PlainBundle:
    """A root filesystem made of the image once, and the bundle that names it."""

    def __init__(self, folder: Path, layer: Path) -> None:
        self._folder = folder
        self._layer = layer
        self._state = folder / "state"
        self._turn = 0

    def make(self) -> None:
        """Mount the image below an overlay, in the mount namespace of the bench."""
        for name in ("lower", "tmpfs", "bundle", "state"):
            (self._folder / name).mkdir(parents=True)
        lower, tmpfs = self._folder / "lower", self._folder / "tmpfs"
        _run("mount", "-o", "loop,ro", str(self._layer), str(lower))
        _run("mount", "-t", "tmpfs", "tmpfs", str(tmpfs))
        for name in ("upper", "work", "root"):
            (tmpfs / name).mkdir()
        options = f"lowerdir={lower},upperdir={tmpfs}/upper,workdir={tmpfs}/work"
        _run("mount", "-t", "overlay", "-o", options, "overlay", str(tmpfs / "root"))

    def command(self, *arguments: str) -> list[str]:
        """Return a runsc command line: the platform is ours, the rest as it comes."""
        flags = ["--platform=systrap", "--network=none", "--ignore-cgroups", "--overlay2=none"]
        return ["runsc", f"--root={self._state}", *flags, *arguments]

    def describe(self, *program: str) -> Path:
        """Write a bundle that runs `program`."""
        bundle = self._folder / "bundle" / str(self._turn)
        self._turn += 1
        bundle.mkdir()
        config = {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": list(program),
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "cwd": "/",
            },
            "root": {"path": str(self._folder / "tmpfs/root"), "readonly": False},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
            },
        }
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    async def run_once(self, bundle: Path) -> float:
        """Run a bundle's program to its end; return how many milliseconds it took."""
        started = time.perf_counter()
        await _succeed(*self.command("run", f"--bundle={bundle}", f"plain-{time.time_ns()}"))
        return (time.perf_counter() - started) * 1000

    async def exec_once(self, container: str, *program: str) -> float:
        """Run a program in a running container; return how many milliseconds it took."""
        started = time.perf_counter()
        await _succeed(*self.command("exec", container, *program))
        return (time.perf_counter() - started) * 1000

    @contextmanager
    def running(self, container: str) -> Iterator[None]:
        """Have a container that does nothing inside the block."""
        bundle = self.describe("/bin/sh", "-c", "echo up; exec sleep infinity")
        command = self.command("run", f"--bundle={bundle}", container)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            try:
                if process.stdout.readline() != b"up\n":
                    raise SystemExit("bench: `runsc run` of a plain bundle failed")
                yield
            finally:
                _run(*self.command("kill", container, "KILL"))
                process.wait(30)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


async def _succeed(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    # A program that failed at once would look quick.
    if process.returncode != 0:
        raise SystemExit(f"bench: {' '.join(command)} failed: {errors.decode()[-500:]}")
