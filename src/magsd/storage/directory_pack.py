"""A program: a directory that the host wrote, as an archive on standard output.

What is written is what `tar_repack` writes of such a directory's archive, by
the same rules. Run for each directory as a process of its own. Needs root, as
files may be anyone's. Standard library only.
"""

import json
import resource
import sys
from dataclasses import asdict
from typing import Final

from magsd.storage import tar_repack
from magsd.storage.directory_entries import DirectoryReader
from magsd.storage.tar_rules import TarLimits, TarRules

_MEMORY_BYTES: Final = 1 << 30
_FILES: Final = 4096
"""One for each folder on the way down, and some that are read ahead."""


def arguments(directory: int, limits: TarLimits) -> list[str]:
    """Return what `main` is to be called with; `directory` is a descriptor that it gets."""
    return [json.dumps(asdict(limits)), str(directory)]


def main(words: list[str]) -> int:
    """Pack; return the exit status, which is one of `tar_repack`."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    limits = TarLimits(**json.loads(words[0]))
    reader = DirectoryReader(int(words[1]), limits)
    return tar_repack.write_out(reader, TarRules(limits, is_ours=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
