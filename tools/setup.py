"""Make this machine able to run, build and (with `--test`) test the project.

Idempotent; what is there already is only looked at. Needs no package: it runs
before there is an environment.
"""

import argparse
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tools")]

import debian_packages  # noqa: E402
from debian_packages import SetupError  # noqa: E402

from magsd.model.errors import MagsError  # noqa: E402
from magsd.storage import kernel_package  # noqa: E402
from magsd.storage.build import cached_path  # noqa: E402

VENV = REPOSITORY / ".venv"
PYTHON = VENV / "bin/python"
IMAGES = REPOSITORY / "build/images"
KERNELS = REPOSITORY / "build/kernel"
PROGRAMS = REPOSITORY / "src/magsd/guest/programs"
PROGRAM_NAMES = ("mags-agent", "mags-shim", "mags-tsc")
ARCHITECTURES = ("x86_64", "aarch64")
USER = "mags"

STEPS_DONE: list[str] = []


@contextmanager
def step(what: str, reports: bool = False) -> Iterator[None]:
    """Show that something is being done, and how long it took.

    What `reports` prints lines of its own meanwhile.
    """
    print(f"setup: {what} ...", end="\n" if reports else "", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    STEPS_DONE.append(what)
    prefix = f"setup: {what}:" if reports else ""
    print(f"{prefix} {time.monotonic() - started:.1f} s", flush=True)


def run(command: list[str], what_to_do: str, show: bool = False) -> None:
    """Run a program; on failure raise with the end of its output and the next step."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if show else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise SetupError(f"{tail}\n`{' '.join(command)}` failed. {what_to_do}".lstrip())


def check_machine(for_tests: bool) -> None:
    """Raise with one line for each thing that this machine lacks and set-up cannot give it."""
    lacking = []
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        lacking.append(f"an x86_64 or aarch64 processor (this is {machine})")
    if os.geteuid() != 0:
        lacking.append("root: run it with sudo; sandboxes need it too")
    if not debian_packages.has_apt():
        lacking += [
            f"{package}: no apt here, install it by hand"
            for package in debian_packages.missing(for_tests)
        ]
        if debian_packages.runsc_is_too_old():
            lacking.append(
                f"runsc (gVisor) of {debian_packages.RUNSC_SINCE} or newer: install it by hand"
            )
    if lacking:
        raise SetupError("\n".join(f"missing: {line}" for line in lacking))


def install_packages(for_tests: bool) -> None:
    """Install the Debian packages that are not there."""
    needs_venv = not PYTHON.exists() and not _has_ensurepip()
    packages = debian_packages.missing(for_tests)
    if needs_venv:
        packages.append("python3-venv")
    if packages:
        with step(f"Debian packages ({', '.join(packages)})"):
            debian_packages.install(packages)
    if needs_venv and not _has_ensurepip():
        raise SetupError(f"{sys.executable} has no ensurepip: install its venv module by hand")
    if debian_packages.runsc_is_too_old():
        with step("runsc (gVisor)"):
            debian_packages.install_runsc()


def _has_ensurepip() -> bool:
    check = [sys.executable, "-c", "import ensurepip, venv"]
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


def add_user() -> None:
    """Make the system user that network-facing processes run as."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        with step(f"system user {USER}"):
            command = ["useradd", "--system", "--user-group", "--no-create-home"]
            command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", USER]
            run(command, "Add the user by hand.")


def make_environment() -> None:
    """Install the locked Python packages, and this one, into `.venv`."""
    inputs = [REPOSITORY / "requirements.txt", REPOSITORY / "pyproject.toml"]
    key = digest_of(inputs, extra=str(REPOSITORY))
    with stamped(VENV / ".stamp", key, PYTHON, VENV / "bin/mags", VENV / "bin/magsd") as is_due:
        if not is_due:
            return
        with step("Python environment .venv"):
            if not PYTHON.exists():
                run([sys.executable, "-m", "venv", "--clear", str(VENV)], "Is the disk full?")
            pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            online = "Check that this machine reaches a Python package index."
            run([*pip, "--require-hashes", "-r", "requirements.txt"], online)
            run([*pip, "--no-deps", "--no-build-isolation", "-e", "."], online)


def build_guest_programs() -> None:
    """Compile the agent, the shim, and what measures the processor's clock."""
    sources = [path for path in (REPOSITORY / "guest").rglob("*") if path.suffix in {".c", ".h"}]
    key = digest_of([*sources, REPOSITORY / "tools/build_guest.py"])
    folder = PROGRAMS / os.uname().machine
    with stamped(PROGRAMS / ".stamp", key, *(folder / name for name in PROGRAM_NAMES)) as is_due:
        if is_due:
            with step("guest programs"):
                run([str(PYTHON), "tools/build_guest.py"], "Does the C code compile?")


def build_image() -> None:
    """Build image `standard` into the cache that `magsd image build` takes it from."""
    squashfs = cached_path(IMAGES)
    if squashfs.exists() and squashfs.with_suffix(".json").exists():
        return
    with step("image standard", reports=True):
        command = [str(PYTHON), "tools/build_image.py", "--cache", str(IMAGES)]
        run(command, "The lines above say why.", show=True)


def get_kernel() -> None:
    """Get the guest's kernel into the cache that `magsd kernel install` takes it from."""
    if kernel_package.is_settled(KERNELS):
        return
    with step("guest kernel", reports=True):
        command = [str(PYTHON), "tools/get_kernel.py", "--cache", str(KERNELS)]
        run(command, "The lines above say why.", show=True)


@contextmanager
def stamped(stamp: Path, key: str, *results: Path) -> Iterator[bool]:
    """Yield whether work is due: results missing, or made from other inputs; then stamp it."""
    there = stamp.exists() and stamp.read_text() == key
    is_due = not (there and all(result.exists() for result in results))
    yield is_due
    if is_due:
        stamp.write_text(key)


def digest_of(paths: list[Path], extra: str = "") -> str:
    """Return one hash over the names and contents of files."""
    digest = sha256(extra.encode())
    for path in sorted(paths):
        digest.update(f"\0{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Do what is asked for; say in one line per thing what was done or is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test", action="store_true", help="also what only the tests need")
    parser.add_argument(
        "--no-image", action="store_true", help="leave out kernel and image `standard`"
    )
    arguments = parser.parse_args()
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    started = time.monotonic()
    steps: list[Callable[[], None]] = [
        lambda: check_machine(arguments.test),
        lambda: install_packages(arguments.test),
        add_user,
        make_environment,
        build_guest_programs,
        *([] if arguments.no_image else [get_kernel, build_image]),
    ]
    try:
        for do in steps:
            do()
    except (SetupError, MagsError) as error:
        for line in str(error).splitlines():
            print(f"setup: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    summary = "done" if STEPS_DONE else "everything is there"
    print(f"setup: {summary} ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
