"""Run suites of checks and tests, and say how long each took.

In stages: of those that run side by side, two at a time, what each printed is
shown when it has ended. Stops after a stage in which one failed; what did not
run is in the summary too.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
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
    # Of links and anchors a build that warns fails.
    _tool("docs", "mkdocs", "build", "--quiet"),
)
_OF_THEIR_OWN = {
    "e2e faults": ("faults",),
    "e2e states": ("workspaces", "qemu", "workspaces_qemu", "workspace_faults"),
    "e2e cycles": ("workspace_cycles", "workspace_model"),
}
"""Files of end-to-end tests that take long."""


def _end_to_end() -> tuple[Suite, ...]:
    files = {
        name: [f"tests/e2e/test_{each}.py" for each in parts]
        for name, parts in _OF_THEIR_OWN.items()
    }
    others = [f"--ignore={file}" for part in files.values() for file in part]
    return (
        _tool("e2e", "pytest", "-q", "tests/e2e", *others),
        *(_tool(name, "pytest", "-q", *part) for name, part in files.items()),
    )


SIDE_BY_SIDE = (_tests("integration"), _tests("conformance"), *_end_to_end())
"""The longest first."""
AT_ONCE = 2


def stages(selection: str) -> tuple[tuple[Suite, ...], ...]:
    """Return what belongs to `check`, `gate` or `full`, fastest first: those of a stage run side by
    side."""
    alone = tuple((suite,) for suite in STATIC)
    if selection == "check":
        return (*alone, (_tests("unit"),))
    fuzz = _tool("fuzz", "python", "tools/fuzz_guest.py", *(["--full"] * (selection == "full")))
    return (*alone, (_tests("unit"), fuzz), SIDE_BY_SIDE)


def suites(selection: str) -> tuple[Suite, ...]:
    """Return the suites of all stages."""
    return tuple(suite for stage in stages(selection) for suite in stage)


@dataclass
class Report:
    """What ran, and how it ended."""

    lines: list[str] = field(default_factory=list)
    failed: str | None = None

    def ended(self, suite: Suite, code: int, took_s: float) -> None:
        """Take note of the end of a suite."""
        verdict = "ok" if code == 0 else f"FAILED (exit code {code})"
        self.lines.append(f"  {suite.name:12} {took_s:6.1f} s  {verdict}")
        if code != 0:
            self.failed = self.failed or suite.name

    def did_not_run(self, suite: Suite) -> None:
        """Take note of a suite that was left out because another failed."""
        self.lines.append(f"  {suite.name:12}      -    not run")


def run(stage: Sequence[Suite], environment: Mapping[str, str], report: Report) -> None:
    """Run a stage, unless a suite has failed before."""
    if report.failed is not None:
        for suite in stage:
            report.did_not_run(suite)
        return
    if len(stage) > 1:
        run_side_by_side(stage, environment, report)
        return
    (suite,) = stage
    print(f"== {suite.name}", flush=True)
    began = time.monotonic()
    code = subprocess.run(
        suite.command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, check=False
    ).returncode
    report.ended(suite, code, time.monotonic() - began)


def run_side_by_side(
    together: Sequence[Suite], environment: Mapping[str, str], report: Report
) -> None:
    """Run suites, `AT_ONCE` at a time, each to its end, and show what each printed by then."""
    print(f"== {', '.join(suite.name for suite in together)}, side by side", flush=True)

    def do(suite: Suite) -> tuple[Suite, subprocess.CompletedProcess[str], float]:
        began = time.monotonic()
        done = subprocess.run(
            suite.command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        return suite, done, time.monotonic() - began

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for running in as_completed([threads.submit(do, suite) for suite in together]):
            suite, done, took_s = running.result()
            print(f"== {suite.name}\n{done.stdout}", flush=True)
            report.ended(suite, done.returncode, took_s)


def main() -> int:
    """Run the selection named on the command line."""
    if sys.argv[1:] not in (["check"], ["gate"], ["full"]):
        print("usage: run_tests.py check|gate|full", file=sys.stderr)
        return 2
    selection = sys.argv[1]
    environment = {**os.environ, FULL: "1" if selection == "full" else "0"}
    environment["NO_MKDOCS_2_WARNING"] = "1"
    environment["PATH"] = f"{BIN}:{environment['PATH']}:/usr/sbin:/sbin"
    started = time.monotonic()
    report = Report()
    for stage in stages(selection):
        run(stage, environment, report)
    total_s = time.monotonic() - started
    verdict = "passed" if report.failed is None else f"FAILED in {report.failed}"
    summary = ["", f"{selection}: {verdict} in {total_s:.0f} s", *report.lines]
    print("\n".join(summary), flush=True)
    return 0 if report.failed is None else 1


if __name__ == "__main__":
    sys.exit(main())
