"""The image `standard` that set-up has built: what is in it starts, what must not be in it is not.

Each command runs in a chroot over the image and a tmpfs, in namespaces that end with it.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from magsd.storage.build import cached_path
from magsd.storage.images import file_sha256

IMAGES = Path(__file__).resolve().parents[2] / "build/images"
MAX_BYTES = 170_000_000
ENTER = """
mount -t tmpfs tmpfs "$1"
mkdir "$1/lower" "$1/upper" "$1/work" "$1/root"
mount -o ro,loop "$2" "$1/lower"
mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount -t proc proc "$1/root/proc"
mount -t tmpfs -o mode=755 tmpfs "$1/root/dev"
for device in null zero urandom; do
    touch "$1/root/dev/$device"
    mount --bind "/dev/$device" "$1/root/dev/$device"
done
exec chroot "$1/root" /bin/sh -c "$3"
"""


@pytest.fixture(scope="session")
def squashfs() -> Path:
    path = cached_path(IMAGES)
    assert path.exists(), "there is no image: run `make setup`"
    return path


@pytest.fixture
def run(squashfs, tmp_path):
    """Run a shell command as root of the image; return what it printed."""

    def run(command: str, code: int = 0) -> str:
        enter = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
        done = subprocess.run(
            [*enter, "/bin/sh", "-euc", ENTER, "sh", tmp_path, squashfs, command],
            env={"PATH": os.environ["PATH"], "HOME": "/root"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    return run


def test_it_is_small_and_what_its_record_says(squashfs):
    record = json.loads(squashfs.with_suffix(".json").read_text())

    assert squashfs.stat().st_size <= MAX_BYTES
    assert file_sha256(squashfs) == record["sha256"]
    assert record["metadata"]["release"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ('python3 -c "print(6*7)"', "42"),
        ("node -p '6*7'", "42"),
        ("python3 -m venv /tmp/v && /tmp/v/bin/python -c 'print(1)'", "1"),
        ("python3 -c 'import ssl, sqlite3, lzma, ctypes, venv; print(1)'", "1"),
        ("echo abc | xz | xz -d", "abc"),
        ("git init -q /tmp/g && cd /tmp/g && git status --porcelain | wc -l", "0"),
        ("ps -o comm= -p 1 >/dev/null && ip -V >/dev/null && echo yes", "yes"),
    ],
)
def test_programs_work(run, command, expected):
    assert run(command) == expected


@pytest.mark.parametrize(
    ("command", "version"),
    [("node", "v20."), ("npm", "10."), ("npx", "10."), ("pip", "pip "), ("curl", "curl ")],
)
def test_programs_have_the_version_that_is_promised(run, command, version):
    assert run(f"{command} --version").startswith(version)


def test_pip_may_install_into_the_system(run):
    """PEP 668's mark would refuse it; without a network pip must fail at the network."""
    assert run("ls /usr/lib/python3*/EXTERNALLY-MANAGED 2>/dev/null || true") == ""


def test_what_scripts_for_alpine_add_is_there_already(run):
    names = "nodejs npm python3 py3-pip git curl bash ca-certificates tar gzip xz libstdc++"

    assert run(f"apk add --no-cache {names}").startswith("OK: ")
    assert run("apk info -e nodejs git").split() == ["nodejs", "git"]


def test_a_service_of_a_package_is_not_started(run):
    run("/usr/sbin/policy-rc.d", code=101)


@pytest.mark.parametrize(
    "path",
    [
        "etc/hostname",
        "etc/hosts",
        "etc/resolv.conf",
        "etc/machine-id",
        "etc/pip.conf",
        "etc/apt/sources.list",
        "usr/local/etc/npmrc",
    ],
)
def test_files_of_the_host_are_there_and_empty(run, path):
    assert run(f"stat -c '%F %a' {shlex.quote('/' + path)}") == "regular empty file 644"


def test_nothing_of_the_building_machine_is_in_it(run):
    left = run(
        "find /etc/apt/sources.list.d /etc/apt/auth.conf.d /etc/apt/preferences.d "
        "/var/lib/apt/lists /var/cache/apt /var/log /root /tmp -type f "
        "! -path '/root/.bashrc' ! -path '/root/.profile'; "
        "ls /etc/apt/auth.conf 2>/dev/null || true"
    )
    assert left == ""


def test_the_folders_that_a_sandbox_needs_are_there(run):
    run(
        "test -d /run/mags && test -d /uploads && test -d /run/lock && test -d /proc && test -d /sys"
    )


def test_a_new_authority_is_appended_to_the_bundle_of_the_host(run):
    """The bundle of a sandbox is mounted over the image's, and cannot be replaced."""
    printed = run(
        "cd /tmp && cat > own.py <<'X'\n"
        "import pathlib\n"
        "pem = pathlib.Path('/etc/ssl/certs/ca-certificates.crt').read_text()\n"
        "blocks = pem.split('-----END CERTIFICATE-----\\n')\n"
        "end = '-----END CERTIFICATE-----\\n'\n"
        "pathlib.Path('/usr/local/share/ca-certificates/own.crt').write_text(blocks[0] + end)\n"
        "pathlib.Path('/etc/ssl/certs/ca-certificates.crt').write_text(blocks[1] + end)\n"
        "X\n"
        "mkdir -p /usr/local/share/ca-certificates && python3 own.py\n"
        "ls -i /etc/ssl/certs/ca-certificates.crt | cut -d' ' -f1 > before\n"
        "update-ca-certificates >/dev/null 2>&1\n"
        "ls -i /etc/ssl/certs/ca-certificates.crt | cut -d' ' -f1 > after\n"
        "cmp before after && grep -c BEGIN /etc/ssl/certs/ca-certificates.crt"
    )
    assert int(printed) > 100
