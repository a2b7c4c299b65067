"""The unit for systemd, read by systemd itself."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

UNIT = Path(__file__).parents[2] / "deploy/magsd.service"
HOW_TO = Path(__file__).parents[2] / "docs/how-to/run-as-a-service.md"
MAGSD = Path(sys.executable).with_name("magsd")
# Each puts a system call filter on sandboxes, or mounts over what the daemon writes to.
FORBIDDEN = re.findall(
    r"\w+",
    """
LockPersonality MemoryDenyWriteExecute PrivateDevices ProtectClock ProtectControlGroups
ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc
RestrictAddressFamilies RestrictNamespaces RestrictRealtime RestrictSUIDSGID SystemCallFilter
DevicePolicy DeviceAllow PrivateNetwork PrivateUsers PrivateMounts RootDirectory User
    """,
)


def settings():
    """Return every setting of the unit; the last of a name wins, as for systemd."""
    lines = (line for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line))
    return dict(line.split("=", 1) for line in lines)


def test_systemd_finds_nothing_wrong(tmp_path):
    assert shutil.which("systemd-analyze"), "install the Debian package systemd: `make setup-test`"
    text = UNIT.read_text().replace("/opt/mags/.venv/bin/magsd", str(MAGSD))
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / UNIT.name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_sandboxes_outlive_the_daemon():
    found = settings()
    assert found["KillMode"] == "process"
    assert found["Delegate"] == "yes"
    assert found["Type"] == "notify"


def test_nothing_in_it_breaks_sandboxes():
    assert not set(settings()) & set(FORBIDDEN)


def test_the_how_to_uses_the_file():
    assert f"deploy/{UNIT.name}" in HOW_TO.read_text()
