"""Fuzz what the agent and the shim make of bytes that come from outside.

Builds each fuzzer with libFuzzer and sanitizers, runs it for a while, and fails when one
finds something. Corpus, build and findings stay in `build/fuzz`.
"""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = REPOSITORY / "build/fuzz"
WIRE = "guest/wire/wire.c"
GATE_S, FULL_S = 5, 300
INPUT_MAX_BYTES = 4096
COMPILER = ("clang", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Fuzzer:
    """A source in `guest/fuzz`, and those that it is linked with."""

    name: str
    sources: tuple[str, ...]
    options: tuple[str, ...] = ()


SHIM_CORE = ("core", "agent", "connection", "durable", "verbs", "freeze", "quiet", "bucket")
SHIM_SOURCES = (WIRE, *(f"guest/shim/{name}.c" for name in SHIM_CORE))
# A table of all ids would take most of the time.
SHIM_OPTIONS = ("-DWIRE_DURABLE_ID_MAX=0xffu",)
SFTP = ("sftp", "sftp_packet", "sftp_requests")
FUZZERS = (
    Fuzzer("fuzz_wire", (WIRE,)),
    Fuzzer("fuzz_agent_link", (WIRE, "guest/agent/session.c", "guest/agent/stream.c")),
    Fuzzer("fuzz_sftp", (WIRE, *(f"guest/agent/{name}.c" for name in SFTP))),
    Fuzzer("fuzz_shim_link", SHIM_SOURCES, SHIM_OPTIONS),
    Fuzzer("fuzz_log_rate", SHIM_SOURCES, SHIM_OPTIONS),
)


def build(fuzzer: Fuzzer) -> Path:
    """Compile a fuzzer; raise CalledProcessError when it has errors."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / fuzzer.name
    sources = (f"guest/fuzz/{fuzzer.name}.c", *fuzzer.sources)
    flags = (*SANITIZERS, *fuzzer.options, "-I", "guest/wire")
    command = [*COMPILER, *flags, "-o", str(program), *sources]
    subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, check=True)
    return program


def run(fuzzer: Fuzzer, program: Path, duration_s: int) -> bool:
    """Run a fuzzer; print how much it tried, or what it found. True when it found nothing."""
    corpus = BUILD / f"{fuzzer.name}.corpus"
    corpus.mkdir(exist_ok=True)
    options = [
        f"-max_total_time={duration_s}",
        f"-max_len={INPUT_MAX_BYTES}",
        f"-artifact_prefix={BUILD}/{fuzzer.name}-",
        "-timeout=10",
        "-print_final_stats=1",
    ]
    done = subprocess.run(
        [str(program), *options, str(corpus)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    count = re.search(r"number_of_executed_units: (\d+)", done.stdout)
    print(f"{fuzzer.name}: {count[1] if count else 0} executions", flush=True)
    if done.returncode != 0:
        print(done.stdout[-6000:], file=sys.stderr)
    return done.returncode == 0


def main() -> int:
    """Build and run all fuzzers, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"{FULL_S} s each, not {GATE_S}")
    parser.add_argument("names", nargs="*", metavar="name")
    arguments = parser.parse_args()
    chosen = [each for each in FUZZERS if not arguments.names or each.name in arguments.names]
    try:
        programs = {fuzzer: build(fuzzer) for fuzzer in chosen}
    except subprocess.CalledProcessError:
        print("a fuzzer does not compile", file=sys.stderr)
        return 1
    duration_s = FULL_S if arguments.full else GATE_S
    verdicts = [run(fuzzer, program, duration_s) for fuzzer, program in programs.items()]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
