"""A program: an archive from standard input, checked and written anew to standard output.

What is written is made of what was understood, never copied from a header.
Run for each archive as a process of its own, so that a hostile one costs
nobody else time or memory. Standard library only.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import BinaryIO, Final, Protocol

from magsd.storage import tar_entries
from magsd.storage.tar_rules import TarEntry, TarLimits, TarRefusedError, TarRules

IS_EMPTY: Final = 10
"""The exit status when there was nothing but the top directory itself."""
IS_REFUSED: Final = 11
"""… when an entry is against the rules; standard error says which."""
IS_TOO_LARGE: Final = 12
_MEMORY_BYTES: Final = 1 << 30
_BUFFER_BYTES: Final = 1 << 18
_NOBODY: Final = 65534


def arguments(limits: TarLimits, *, is_ours: bool) -> list[str]:
    """Return what `main` is to be called with."""
    return [json.dumps(asdict(limits)), "ours" if is_ours else "foreign"]


class EntryReader(Protocol):
    """Entries from wherever they come."""

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield every entry."""

    def content(self) -> Iterator[bytes]:
        """Yield the content of the entry that was yielded last, without its holes."""


def repack(source: BinaryIO, sink: BinaryIO, rules: TarRules, limits: TarLimits) -> None:
    """Write `source` anew. Raises `TarRefusedError`, with part of it written."""
    write(tar_entries.TarReader(source, limits), sink, rules)


def write(reader: EntryReader, sink: BinaryIO, rules: TarRules) -> None:
    """Write what may be in a layer. Raises `TarRefusedError`, with part of it written."""
    for entry in reader:
        rules.check(entry)
        sink.write(tar_entries.header(entry))
        for piece in reader.content():
            sink.write(piece)
        sink.write(tar_entries.padding(entry))
    sink.write(tar_entries.END)
    sink.flush()


def confine() -> None:
    """Give up what reading an archive does not need: privileges, and more than some memory."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def main(words: list[str]) -> int:
    """Repack; return the exit status."""
    confine()
    limits = TarLimits(**json.loads(words[0]))
    rules = TarRules(limits, is_ours=words[1] == "ours")
    with open(0, "rb", buffering=_BUFFER_BYTES, closefd=False) as source:
        return write_out(tar_entries.TarReader(source, limits), rules)


def write_out(reader: EntryReader, rules: TarRules) -> int:
    """Write to standard output, and what is wrong to standard error; return the exit status."""
    try:
        with open(1, "wb", buffering=_BUFFER_BYTES, closefd=False) as sink:
            write(reader, sink, rules)
    except TarRefusedError as error:
        sys.stderr.write(f"{error}\n")
        return IS_TOO_LARGE if error.is_too_large else IS_REFUSED
    except MemoryError:
        sys.stderr.write("the archive needs more memory than may be\n")
        return IS_TOO_LARGE
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"{error}\n")
        return 1
    return IS_EMPTY if rules.is_empty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
