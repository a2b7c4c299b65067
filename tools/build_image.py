"""Build image `standard` into a cache, which `magsd image build --cache` takes it from."""

import argparse
import sys
from pathlib import Path

from magsd.model.errors import MagsError
from magsd.storage.build import build_cached


def main() -> int:
    """Build unless it is there; print progress on stderr and the file's path on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--force", action="store_true", help="build even if it is there")
    arguments = parser.parse_args()
    try:
        built = build_cached(
            arguments.cache, arguments.force, lambda line: print(f"  {line}", file=sys.stderr)
        )
    except MagsError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(built.squashfs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
