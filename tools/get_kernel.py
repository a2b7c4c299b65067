"""Get the guest's kernel into a cache, which `magsd kernel install --cache` takes it from."""

import argparse
import sys
from pathlib import Path

from magsd.model.errors import MagsError
from magsd.storage.kernel_package import DAILY, get_cached, update_pin


def main() -> int:
    """Get it unless it is there; print progress on stderr and the folder's path on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument(
        "--update-pin", action="store_true", help="first pin what this machine's mirrors have now"
    )
    arguments = parser.parse_args()
    try:
        if arguments.update_pin:
            before, now = update_pin()
            change = f"{before} → {now}" if before != now else f"{now} is the newest still"
            print(f"  guest kernel: {change}", file=sys.stderr)
        got = get_cached(arguments.cache, lambda line: print(f"  {line}", file=sys.stderr), DAILY)
    except MagsError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(got.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
