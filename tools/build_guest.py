"""Compile the programs that run beside and inside a sandbox: `mags-shim` and `mags-agent`.

Owns how they are compiled and where they go; whether it is time to is the caller's
question. Without `--all` only this machine's architecture is built.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = REPOSITORY / "src/magsd/guest/programs"
ARCHITECTURES = ("x86_64", "aarch64")
SOURCES = {"mags-agent": "guest/agent", "mags-shim": "guest/shim", "mags-tsc": "guest/tsc"}
SHARED = "guest/wire"
FLAGS = ("-static", "-s", "-Os", "-std=c11", "-Wall", "-Wextra", "-Werror")


def build(program: str, architecture: str, programs: Path) -> Path:
    """Compile one program and return where it is; raise CalledProcessError when it has errors.

    It is written aside and renamed: whoever runs the old one goes on running it.
    """
    target = programs.absolute() / architecture / program
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{program}.{os.getpid()}")
    sources = [
        str(path.relative_to(REPOSITORY))
        for folder in (SOURCES[program], SHARED)
        for path in sorted((REPOSITORY / folder).glob("*.c"))
    ]
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl"]
    command = [*compiler, *FLAGS, "-I", SHARED, "-o", str(aside), *sources]
    try:
        subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, check=True)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def main() -> int:
    """Build what is asked for; print a line for each program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="for every architecture")
    parser.add_argument(
        "--into", type=Path, default=PROGRAMS, help="another folder for the results"
    )
    arguments = parser.parse_args()
    for architecture in ARCHITECTURES if arguments.all else (os.uname().machine,):
        for program in SOURCES:
            try:
                target = build(program, architecture, arguments.into)
            except subprocess.CalledProcessError:
                print(f"{program} does not compile for {architecture}", file=sys.stderr)
                return 1
            print(f"{architecture}/{program}: {target.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
