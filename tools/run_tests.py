"""Run suites of checks and tests one after the other, and say how long each took.

Stops at the first that fails; what did not run is in the summary too.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = REPOSITORY / ".venv/bin"
FULL = "MAGS_TEST_FULL"
"""In the environment of every suite: tests take their large sizes when it is `1`."""


@dataclass(frozen=True)
class Suite:
    """A name and the program that fails when something is wrong."""

    name: str
    command: tuple[str, ...]


def _tool(name: str, *arguments: str) -> Suite:
    return Suite(name, (str(BIN / arguments[0]), *arguments[1:]))


def _tests(name: str) -> Suite:
    return _tool(name, "pytest", "-q", f"tests/{name}")


STATIC = (
    _tool("format", "ruff", "format", "--check", "--quiet", "."),
    _tool("lint", "ruff", "check", "--quiet", "."),
    _tool("types", "mypy"),
    _tool("layers", "lint-imports"),
)
SLOW = (_tests("integration"), _tests("conformance"), _tests("e2e"))


def suites(selection: str) -> tuple[Suite, ...]:
    """Return what belongs to `check`, `gate` or `full`, fastest first."""
    if selection == "check":
        return (*STATIC, _tests("unit"))
    fuzz = _tool("fuzz", "python", "tools/fuzz_guest.py", *(["--full"] * (selection == "full")))
    return (*STATIC, _tests("unit"), fuzz, *SLOW)


def main() -> int:
    """Run the selection named on the command line."""
    if sys.argv[1:] not in (["check"], ["gate"], ["full"]):
        print("usage: run_tests.py check|gate|full", file=sys.stderr)
        return 2
    selection = sys.argv[1]
    environment = {**os.environ, FULL: "1" if selection == "full" else "0"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}:/usr/sbin:/sbin"
    started = time.monotonic()
    lines = []
    failed = None
    for suite in suites(selection):
        if failed is not None:
            lines.append(f"  {suite.name:12}      -    not run")
            continue
        print(f"== {suite.name}", flush=True)
        began = time.monotonic()
        code = subprocess.run(
            suite.command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, check=False
        ).returncode
        verdict = "ok" if code == 0 else f"FAILED (exit code {code})"
        lines.append(f"  {suite.name:12} {time.monotonic() - began:6.1f} s  {verdict}")
        if code != 0:
            failed = suite.name
    total_s = time.monotonic() - started
    verdict = "passed" if failed is None else f"FAILED in {failed}"
    print("\n".join(["", f"{selection}: {verdict} in {total_s:.0f} s", *lines]), flush=True)
    return 0 if failed is None else 1


if __name__ == "__main__":
    sys.exit(main())
