"""`magsd doctor` on this machine, which can run what the other tests run."""

import os
import subprocess
import sys
from pathlib import Path

from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore

MAGSD = Path(sys.executable).with_name("magsd")
IMAGES = Path(__file__).parents[2] / "build/images"


def test_a_healthy_machine(tmp_path):
    build_standard(ImageStore(tmp_path), IMAGES, False, lambda _: None)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAGSD")}
    environment |= {"MAGSD_DATA_DIR": str(tmp_path), "MAGSD_API_BIND": "127.0.0.1:1"}
    done = subprocess.run(
        [MAGSD, "doctor"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(line.startswith("ok    sandbox    gvisor (application-kernel)") for line in lines)
    assert not any(line.startswith("fail") for line in lines)
