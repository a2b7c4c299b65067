"""The Debian packages that the project needs, and how to get them from this machine's mirrors.

Imported by set-up; standard library only.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from magsd.storage import apt_sources

PACKAGE_OF_PROGRAM = {
    "mksquashfs": "squashfs-tools",
    "tar2sqfs": "squashfs-tools-ng",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "ip": "iproute2",
    "ps": "procps",
    "ssh": "openssh-client",
    "lz4": "lz4",
    **{
        "x86_64": {"qemu-system-x86_64": "qemu-system-x86"},
        "aarch64": {"qemu-system-aarch64": "qemu-system-arm"},
    }.get(os.uname().machine, {}),
}
"""`lz4` unpacks the guest's kernel."""
TEST_PACKAGES_OF_RELEASE = {
    release: (
        "clang",
        "curl",
        f"libclang-rt-{llvm}-dev",
        "nginx",
        "openssl",
        "podman",
        "postgresql",
        "qemu-utils",
        "rsync",
        "runc",
        "systemd",
    )
    for release, llvm in (("bookworm", 14), ("trixie", 19))
}
"""libFuzzer, which the compiler of the guest programs does not have; who runs images that we
export; a server that can hold the database; who reads foreign disks; who reads our unit; a proxy
and a client for the gateway."""
POLICY = Path("/usr/sbin/policy-rc.d")
"""What the installation of a service asks whether it may be started; there is none usually."""
CLUSTER_SETTINGS = Path("/etc/postgresql-common/createcluster.conf")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LISTS = Path("/var/lib/apt/lists")
RUNSC_SINCE = 20240729
"""The release of 2022 in Debian 12 proper breaks `ls` and `stat` of Debian 12 inside."""


class SetupError(Exception):
    """Set-up cannot go on; the message says what is missing, a line each."""


def has_apt() -> bool:
    """Say whether this is a Debian that packages can be installed on."""
    return codename() != "" and shutil.which("apt-get") is not None


def codename() -> str:
    """Return the codename of this Debian release; empty when this is no Debian."""
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
        if "=" in line
    )
    if release.get("ID", "").strip('"') != "debian":
        return ""
    return release.get("VERSION_CODENAME", "").strip('"')


def missing(for_tests: bool) -> list[str]:
    """Return the packages whose programs are not there."""
    packages = [
        package for program, package in PACKAGE_OF_PROGRAM.items() if shutil.which(program) is None
    ]
    if not CERTIFICATES.exists():
        packages.append("ca-certificates")
    if for_tests:
        release = codename()
        known = TEST_PACKAGES_OF_RELEASE.get(release, TEST_PACKAGES_OF_RELEASE["bookworm"])
        packages += [package for package in known if not _is_installed(package)]
    return packages


def _is_installed(package: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout == "installed"


def install(packages: list[str], *options: str) -> None:
    """Install packages, fetching the lists first where there are none or they are too old."""
    with without_services(POLICY) if "nginx" in packages else nullcontext():
        _install_with_database(packages, *options)


def _install_with_database(packages: list[str], *options: str) -> None:
    if "postgresql" not in packages:
        _install(packages, *options)
        return
    # It comes first, with the settings that say what the server's own installation does.
    _install(["postgresql-common"])
    with without_cluster(CLUSTER_SETTINGS):
        _install(packages, *options)


@contextmanager
def without_services(policy: Path) -> Iterator[None]:
    """Let no installation inside the block start a service: tests start what they need."""
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


@contextmanager
def without_cluster(settings: Path) -> Iterator[None]:
    """Let no installation inside the block make and start a server: tests have their own."""
    original = settings.read_text(encoding="utf-8")
    settings.write_text(f"{original}\ncreate_main_cluster = false\n", encoding="utf-8")
    try:
        yield
    finally:
        settings.write_text(original, encoding="utf-8")


def _install(packages: list[str], *options: str) -> None:
    command = ["install", "--no-install-recommends", *options, *packages]
    if any(LISTS.glob("*_Packages*")) and _apt_get(*command) is None:
        return
    problem = _apt_get("update") or _apt_get(*command)
    if problem is not None:
        raise SetupError(f"{problem}\napt-get could not install {' '.join(packages)}")


def runsc_is_too_old() -> bool:
    """Say whether gVisor's runsc is absent or older than what works."""
    program = shutil.which("runsc")
    if program is None:
        return True
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return _release_date(done.stdout) < RUNSC_SINCE


def _release_date(version: str) -> int:
    found = re.search(r"(20\d{6})\.", version)
    return int(found.group(1)) if found else 0


def install_runsc() -> None:
    """Install runsc, from the release's backports where the release has an older one."""
    if not any(LISTS.glob("*_Packages*")):
        _apt_get("update")
    policy = ["apt-cache", "policy", "runsc"]
    shown = subprocess.run(policy, capture_output=True, text=True, check=False).stdout
    candidate = re.search(r"Candidate: (\S+)", shown)
    if candidate and _release_date(candidate.group(1)) >= RUNSC_SINCE:
        install(["runsc"])
    else:
        _install_from_backports("runsc")
    if runsc_is_too_old():
        raise SetupError(f"runsc of {RUNSC_SINCE} or newer: the mirrors of this machine have none")


def _install_from_backports(package: str) -> None:
    release = codename()
    source = apt_sources.backports(apt_sources.read_sources(), release)
    if source is None:
        raise SetupError(f"/etc/apt names no source for {release}: add one, for {package}")
    # Only these runs of apt read the list: nothing of the machine's configuration is touched.
    with tempfile.TemporaryDirectory(prefix="mags-setup-") as folder:
        Path(folder).chmod(0o755)
        own = Path(folder) / "backports.sources"
        own.write_text(source.stanza(), encoding="utf-8")
        for part in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
            if part.is_file():
                shutil.copy(part, folder)
        parts = ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={folder}"]
        only = ["-o", f"Dir::Etc::sourcelist={own}", "-o", "Dir::Etc::sourceparts=/dev/null"]
        problem = _apt_get("update", *only, "-o", "APT::Get::List-Cleanup=0") or _apt_get(
            "install", *parts, "--no-install-recommends", "-t", f"{release}-backports", package
        )
    if problem is not None:
        raise SetupError(f"{problem}\napt-get could not install {package} of {release}-backports")


def _apt_get(command: str, *arguments: str) -> str | None:
    """Run apt-get quietly; return the end of its output when it failed."""
    options = ["-qq", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "Acquire::Retries=3"]
    options += ["-o", "DPkg::Lock::Timeout=120"]
    done = subprocess.run(
        ["apt-get", *options, command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode == 0:
        return None
    return "\n".join(done.stdout.splitlines()[-10:]) or f"apt-get {command} failed"
