"""What the peers need of Debian and of PyPI, installed when the bench is run and by nothing else."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

_TOOLS: Final = Path(__file__).resolve().parent.parent / "tools"
PODMAN: Final = {"podman": "podman", "runc": "runc"}
QEMU: Final = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils"}
"""Debian packages by the program that is wanted of them."""


class LacksError(Exception):
    """A peer cannot be had; the message says why."""


def install(wanted: Mapping[str, str]) -> None:
    """Install the packages whose programs are not there. Raises `LacksError`."""
    missing = [package for program, package in wanted.items() if shutil.which(program) is None]
    if not missing:
        return
    debian = _debian_packages()
    if not debian.has_apt():
        raise LacksError(f"no {', '.join(missing)}, and no apt-get to install it")
    try:
        debian.install(missing)
    except debian.SetupError as error:
        raise LacksError(str(error).splitlines()[-1]) from error


def install_in(environment: Path, *packages: str) -> Path:
    """Return the Python of a virtual environment that has `packages`. Raises `LacksError`."""
    python, done = environment / "bin/python", environment / "installed"
    if done.exists() and done.read_text() == "\n".join(packages):
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(python), "-m", "pip", "install", "--quiet", *packages],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            last = (ran.stderr.strip() or "no reason given").splitlines()[-1]
            raise LacksError(f"{' '.join(packages)} cannot be installed: {last}")
    done.write_text("\n".join(packages))
    return python


def _debian_packages() -> ModuleType:
    """Load the tool of set-up, which is a script of a folder that is no package."""
    spec = importlib.util.spec_from_file_location("debian_packages", _TOOLS / "debian_packages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
