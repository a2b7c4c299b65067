"""What the daemon loads: libraries that most services never need are left out until they are."""

import subprocess
import sys

LATER = ("alembic", "cryptography", "psycopg", "asyncssh")


def test_what_is_seldom_needed_is_loaded_when_it_is():
    program = f"import sys, magsd.app\nprint([m for m in {LATER} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
