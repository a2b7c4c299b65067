"""Write the generated pages of docs/reference: the API's document, and the settings."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "src"))

from magsd import config  # noqa: E402
from magsd.api.app import openapi_json  # noqa: E402


def main() -> int:
    """Write both files; print those that changed."""
    reference = REPOSITORY / "docs/reference"
    pages = {"openapi.json": openapi_json(), "configuration.md": config.reference()}
    for name, text in pages.items():
        path = reference / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
