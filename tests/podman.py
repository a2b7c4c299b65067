"""podman with a storage of a test's own: the tool that others have for OCI images."""

import subprocess
from pathlib import Path

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Podman:
    """Images in a folder. Containers have no network, and end with their command."""

    def __init__(self, folder: Path) -> None:
        places = {"root": "storage", "runroot": "run", "tmpdir": "tmp"}
        self._command = [
            # What it mounts for itself goes with it.
            *("unshare", "--mount", "podman"),
            *(f"--{option}={folder / name}" for option, name in places.items()),
            # crun, its default, refuses hybrid control groups.
            *("--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=none"),
        ]

    def __call__(self, *words: str | Path) -> str:
        """Return what a command printed, which must end well."""
        done = subprocess.run(
            [*self._command, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={"PATH": _PATH, "HOME": "/nonexistent"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def load(self, archive: Path) -> str:
        """Take an image; return its name."""
        return self("load", "--quiet", "--input", archive).strip().removeprefix("Loaded image: ")

    def run(self, image: str, script: str) -> list[str]:
        """Return the lines that a shell's script printed in a container."""
        limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
        words = ("run", "--rm", "--network=none", *limits, image, "sh", "-c", script)
        return self(*words).splitlines()
