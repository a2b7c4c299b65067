"""The scripts of `tools/` are no package: make them importable."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "tools"))
