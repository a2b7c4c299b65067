"""What the command prints: results to stdout, everything else to stderr.

Understandable without colour; colour only where a person looks.
"""

import json
import sys
from typing import Any


def write_log_entry(entry: dict[str, Any]) -> None:
    """Write one line of a job where the job wrote it; system lines go to stderr."""
    message = entry["message"]
    if entry["source"] == "stdout":
        _write_line(sys.stdout, message)
    elif entry["source"] == "stderr":
        _write_line(sys.stderr, message)
    else:
        note(message)


def _write_line(stream: Any, line: str) -> None:
    # Bytes, so that no terminal encoding can refuse what a script printed.
    stream.buffer.write(line.encode("utf-8", "replace") + b"\n")
    stream.flush()


def note(message: str) -> None:
    """Tell a person something beside the result."""
    _tell(message, "2")


def failure(message: str) -> None:
    """Tell a person what went wrong, in one line."""
    _tell(message, "31")


def _tell(message: str, colour: str) -> None:
    # Written by hand: loading a terminal library takes longer than most commands.
    prefix = f"\x1b[{colour}mmags:\x1b[0m" if sys.stderr.isatty() else "mags:"
    _write_line(sys.stderr, f"{prefix} {message}")


def size(size_bytes: int) -> str:
    """Return a size for eyes, as `12.3 MB`."""
    shown, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if shown < 1000:
            break
        shown, unit = shown / 1000, larger
    return f"{shown:.0f} {unit}" if unit == "B" else f"{shown:.1f} {unit}"


def write_json(value: Any) -> None:
    """Write `value` as JSON to stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def write_pairs(pairs: dict[str, Any]) -> None:
    """Write `key  value` lines, leaving out what is None or empty."""
    shown = {key: value for key, value in pairs.items() if value not in (None, "")}
    width = max((len(key) for key in shown), default=0)
    for key, value in shown.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        _write_line(sys.stdout, f"{key:<{width}}  {text}")


def write_table(columns: list[str], rows: list[list[str]]) -> None:
    """Write rows under a heading, a line each, for eyes and for `grep` and `awk` alike."""
    table = [columns, *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(columns))]
    for row in table:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        _write_line(sys.stdout, "  ".join(cells).rstrip())
