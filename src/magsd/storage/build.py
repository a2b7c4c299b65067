"""Builds image `standard`: the host's Debian release, Python, Node.js, and `apk`.

Owns the recipe (the files in `recipes/`) and the cache of finished builds,
which data directories share. What an image is once it is built belongs to
`images`. Synchronous: run from set-up and the command line, not in the daemon.

A build takes the machine's own mirrors, proxy and credentials; none of them
is in the result.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from magsd.model.errors import MagsError
from magsd.storage import apt_sources, node_wheel
from magsd.storage.images import (
    Image,
    ImageStore,
    file_sha256,
    read_json,
    sync_directory,
    sync_file,
    write_json,
)

Progress = Callable[[str], None]

NAME: Final = "standard"
RECIPE_VERSION: Final = 1
"""Raise it when a change of this module alone changes the image."""
_RECIPES: Final = Path(__file__).parent / "recipes"
_ZSTD_LEVEL: Final = "9"
"""Measured on 2 cores: 3 gives 128 MB in 1 s, 9 gives 119 MB in 3 s, 15 gives 113 MB in 13 s."""
_NOT_PASSED_ON: Final = ("IndexTargets", "Changelogs", "cdrom", "CompressionTypes", "Languages")


@dataclass(frozen=True)
class Built:
    """A finished build in a cache."""

    squashfs: Path
    metadata: Mapping[str, Any]


def build_standard(store: ImageStore, cache: Path | None, force: bool, progress: Progress) -> Image:
    """Make image `standard` of `store` what the recipe says; return it.

    Takes a finished build out of `cache` when there is one. Does nothing when
    the store has that image already; `force` builds anew in any case. Raises
    `MagsError` whose message says what to do.
    """
    if not force and (image := _present(store)) is not None:
        progress(f"image {NAME} is up to date")
        return image
    if cache is not None:
        built = build_cached(cache, force, progress)
        return store.add(NAME, built.squashfs, built.metadata)
    with tempfile.TemporaryDirectory(prefix="mags-image-", dir="/var/tmp") as folder:
        built = build_cached(Path(folder), force, progress)
        return store.add(NAME, built.squashfs, built.metadata)


def build_cached(cache: Path, force: bool, progress: Progress) -> Built:
    """Return the finished build in `cache`, making it first when it is not there.

    Several may ask at once: one builds, the others wait for it.
    """
    squashfs = cached_path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        if not force and (built := _intact(squashfs)) is not None:
            progress(f"image {NAME}: found built in {cache}")
            return built
        return _build(cache, squashfs, _codename(), progress)


def cached_path(cache: Path) -> Path:
    """Return where in `cache` the build for this machine lies, or would lie."""
    return cache / f"{NAME}-{recipe_key(_codename(), _architecture())}.sqfs"


def recipe_key(codename: str, architecture: str) -> str:
    """Return what names the result of the recipe, as it stands, for a release."""
    digest = hashlib.sha256(f"{RECIPE_VERSION} {codename} {architecture}".encode())
    for path in sorted(_RECIPES.iterdir()):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _present(store: ImageStore) -> Image | None:
    try:
        image = store.get(NAME)
    except MagsError:
        return None
    if image.metadata.get("recipe") != recipe_key(_codename(), _architecture()):
        return None
    whole = all(layer.exists() and file_sha256(layer) == layer.stem for layer in image.layers)
    return image if whole else None


def _intact(squashfs: Path) -> Built | None:
    try:
        record = read_json(squashfs.with_suffix(".json"))
        if file_sha256(squashfs) == record["sha256"]:
            return Built(squashfs, record["metadata"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _build(cache: Path, squashfs: Path, codename: str, progress: Progress) -> Built:
    _check_host()
    for left_over in cache.glob(".build-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=cache))
    try:
        root = work / "root"
        _bootstrap(root, work, codename, progress)
        progress(f"image {NAME}: adding Node.js")
        node_version = node_wheel.install_node(root, work)
        _run(["sh", str(_RECIPES / "finish.sh"), str(root), str(_RECIPES)])
        metadata = _describe(root, codename, node_version)
        progress(f"image {NAME}: packing")
        packed = work / "packed.sqfs"
        _pack(root, packed)
        return _publish(packed, squashfs, metadata, progress)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _bootstrap(root: Path, work: Path, codename: str, progress: Progress) -> None:
    sources = apt_sources.of_release(apt_sources.read_sources(), codename)
    if not any(source.suite == codename for source in sources):
        raise MagsError(f"/etc/apt names no source for the suite {codename!r}: add one")
    mirrors = work / "mirrors.sources"
    mirrors.write_text("".join(source.stanza() for source in sources), encoding="utf-8")
    settings = work / "apt.conf"
    settings.write_text(_host_apt_settings(), encoding="utf-8")
    packages = [
        line
        for line in (_RECIPES / "packages").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    progress(f"image {NAME}: Debian {codename} from this machine's mirrors")
    # mmdebstrap mounts proc and sys into the tree; in a namespace of their own they end with it.
    command = ["unshare", "--mount", "--propagation", "private", "mmdebstrap"]
    command += ["--mode=root", "--format=directory", "--variant=minbase"]
    command += [f"--include={','.join(packages)}", f"--aptopt={settings}"]
    command += [f"--dpkgopt={_RECIPES / 'guest-dpkg.cfg'}"]
    _run([*command, codename, str(root), str(mirrors)], progress)


def _host_apt_settings() -> str:
    """Return proxy, retries, certificates and credentials of this machine's apt."""
    dumped = _run(["apt-config", "dump", "--no-empty", "Acquire"])
    lines = [
        line
        for line in dumped.splitlines()
        if line.startswith("Acquire::") and line.split("::")[1] not in _NOT_PASSED_ON
    ]
    lines += ['APT::Sandbox::User "root";', 'APT::Install-Recommends "false";']
    lines += ['Acquire::Languages "none";']
    lines += ['Dir::Etc::netrc "/etc/apt/auth.conf";']
    lines += ['Dir::Etc::netrcparts "/etc/apt/auth.conf.d";']
    return "\n".join(lines) + "\n"


def _describe(root: Path, codename: str, node_version: str) -> dict[str, Any]:
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n"]
    packages = _run(["chroot", str(root), *query])
    return {
        "release": codename,
        "architecture": _architecture(),
        "recipe": recipe_key(codename, _architecture()),
        "recipe_version": RECIPE_VERSION,
        "node": node_version,
        "packages": len(packages.splitlines()),
        "packages_sha256": hashlib.sha256(packages.encode()).hexdigest(),
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _pack(root: Path, target: Path) -> None:
    command = ["mksquashfs", str(root), str(target), "-noappend", "-quiet", "-no-progress"]
    _run([*command, "-xattrs", "-comp", "zstd", "-Xcompression-level", _ZSTD_LEVEL])


def _publish(packed: Path, squashfs: Path, metadata: dict[str, Any], progress: Progress) -> Built:
    packed.chmod(0o444)
    sync_file(packed)
    record = squashfs.with_suffix(".json")
    record.unlink(missing_ok=True)
    packed.replace(squashfs)
    sync_directory(squashfs.parent)
    write_json(record, {"sha256": file_sha256(squashfs), "metadata": metadata})
    for old in squashfs.parent.glob(f"{NAME}-*"):
        if old.stem != squashfs.stem:
            old.unlink()
    size_mb = squashfs.stat().st_size / 1e6
    progress(f"image {NAME}: {size_mb:.0f} MB, {metadata['packages']} packages")
    return Built(squashfs, metadata)


def _check_host() -> None:
    if os.geteuid() != 0:
        raise MagsError("building an image needs root")
    for program in ("mmdebstrap", "mksquashfs", "unshare", "chroot"):
        if shutil.which(program) is None:
            raise MagsError(
                f"building an image needs {program}: "
                "run `apt-get install mmdebstrap squashfs-tools util-linux`"
            )


def _codename() -> str:
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        raise MagsError(
            f"image {NAME!r} is built on Debian, and this is {release.get('PRETTY_NAME')}"
        )
    return codename


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], progress: Progress | None = None) -> str:
    """Run a program to its end; return what it printed. Raises `MagsError` when it fails."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    last: deque[str] = deque(maxlen=40)
    output = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        for line in process.stdout or ():
            output.append(line)
            last.append(line)
            if progress is not None and line.startswith("I: ") and line.rstrip().endswith("..."):
                progress(f"  {line[3:].strip()}")
    if process.returncode != 0:
        tail = "".join(last)
        raise MagsError(
            f"building image {NAME!r} failed in {Path(command[0]).name}:\n{tail[-1500:].rstrip()}",
            f"{command} ended with {process.returncode}: {tail}",
        )
    return "".join(output)
