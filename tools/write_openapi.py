"""Write what is generated of the documentation: the API's document, settings, metrics."""

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "src"))

from magsd import config  # noqa: E402
from magsd.api.app import openapi_json  # noqa: E402
from magsd.metrics import Metrics  # noqa: E402

METRICS = re.compile(r"^\| metric \|.*?\n(?!\|)", re.MULTILINE | re.DOTALL)
"""Their table in its page."""


def main() -> int:
    """Write all files; print those that changed."""
    docs = REPOSITORY / "docs"
    monitor = (docs / "how-to/monitor.md").read_text(encoding="utf-8")
    pages = {
        "reference/openapi.json": openapi_json(),
        "reference/configuration.md": config.reference(),
        "how-to/monitor.md": METRICS.sub(lambda _: Metrics().reference(), monitor),
    }
    for name, text in pages.items():
        path = docs / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
