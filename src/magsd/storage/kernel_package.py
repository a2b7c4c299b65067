"""Gets the guest's kernel: Debian's cloud kernel, out of its package, never installed.

Owns folders of kernels: the cache that data directories share, and `kernel/`
of a data directory. Each holds a folder for a version, put there by a rename,
and the link `current`; `engine.kernel` reads them. Which version is wanted is
`kernel_pin`'s, what is taken out of a package `kernel_files`'s.

Synchronous: run from set-up, the command line and the start of the service.
The machine's own apt finds, fetches and checks the package.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from magsd.model.errors import MagsError
from magsd.storage import kernel_files, kernel_pin
from magsd.storage.images import file_sha256, read_json, sync_directory, sync_file, write_json
from magsd.storage.kernel_pin import Offer, Pin

Progress = Callable[[str], None]

DAILY: Final = timedelta(days=1)
_CURRENT: Final = "current"
_RECORD: Final = "kernel.json"
_LOOKED: Final = ".looked"
_RECIPE: Final = "1 " + " ".join(kernel_files.WANTED)
"""Raise its number when a change of the code alone changes what is taken out of a package."""
_DEBIAN_NAMES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Installed:
    """A kernel in a folder of kernels, whole."""

    directory: Path
    record: Mapping[str, Any]

    @property
    def version(self) -> str:
        """Return the version of its package."""
        return str(self.record["version"])


def install_kernel(
    data_directory: Path,
    cache: Path | None,
    progress: Progress,
    look_after: timedelta | None = None,
) -> Installed:
    """Give a data directory the kernel that the project wants; return it.

    Takes it out of `cache`, which gets it first if need be; without a cache
    the data directory gets its own. Hashes are compared, and what is damaged
    is replaced. For `look_after` see `get_cached`. The version that is
    replaced stays until the next replacement: a service may be using it.
    Raises `MagsError` whose message says what to do.
    """
    folder = data_directory / "kernel"
    if cache is None:
        return get_cached(folder, progress, look_after)
    got = get_cached(cache, progress, look_after)
    folder.mkdir(parents=True, exist_ok=True)
    # Locked, so that nobody replaces it in the cache meanwhile.
    with _locked(cache), _locked(folder):
        there = _intact(folder)
        if there is not None and there.record == got.record:
            return there
        installed = _publish(folder, got.directory, got.record)
    progress(f"guest kernel {installed.version}: installed from {cache}")
    return installed


def get_cached(cache: Path, progress: Progress, look_after: timedelta | None = None) -> Installed:
    """Return the kernel of a folder, getting it first when none there will do.

    One that will do is replaced by a newer one, should apt know of one; it is
    asked when that was done last `look_after` ago or longer, with None never.
    When a newer one cannot be had the one that is there is returned.

    Several may ask at once: one fetches, the others wait for it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        there = _usable(cache)
        if there is not None and not _is_time_to_look(cache, look_after):
            progress(f"guest kernel {there.version} is up to date")
            return there
        try:
            newest = _get_newest(cache, there, progress)
        except MagsError as error:
            if there is None:
                raise
            progress(f"guest kernel: {error.message.splitlines()[0]}; using {there.version}")
            newest = there
        # Also after a failure: a machine that reaches no mirror asks once a day as well.
        (cache / _LOOKED).touch()
        return newest


def is_settled(cache: Path) -> bool:
    """Say whether a folder has a kernel that will do, and it is not time to look again.

    For set-up: it looks at no file's content.
    """
    there = _recorded(cache)
    pin = Pin.read()
    fits = there is not None and _is_ours(there) and pin.accepts(there.version)
    return fits and not _is_time_to_look(cache, DAILY)


def update_pin(path: Path = kernel_pin.PIN_FILE) -> tuple[str, str]:
    """Pin what this machine's apt would install now; return the version before, and that one."""
    pin = Pin.read(path)
    _apt_get("update")
    candidates = kernel_pin.parse_offers(_apt_cache("--no-all-versions", _meta(pin)))
    if not candidates:
        raise kernel_pin.refusal([], pin)
    version = candidates[0].version
    text = path.read_text(encoding="utf-8")
    path.write_text(kernel_pin.rewritten(text, version), encoding="utf-8")
    return pin.least, version


def _get_newest(cache: Path, there: Installed | None, progress: Progress) -> Installed:
    _check_host()
    pin = Pin.read()
    offer = kernel_pin.choose(_offers(pin), pin)
    if offer is None:
        offer = _offer_after_update(pin)
    if there is not None and there.version == offer.version:
        progress(f"guest kernel {there.version} is up to date")
        return there
    before = f" (before: {there.version})" if there is not None else ""
    progress(f"guest kernel: fetching {offer.package} {offer.version}{before}")
    work = Path(tempfile.mkdtemp(prefix=".get-", dir=cache))
    try:
        package = _download(offer, pin, work)
        return _take_out(package, cache, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _offers(pin: Pin) -> list[Offer]:
    return kernel_pin.parse_offers(_apt_cache(_meta(pin)))


def _offer_after_update(pin: Pin) -> Offer:
    _apt_get("update")
    offers = _offers(pin)
    offer = kernel_pin.choose(offers, pin)
    if offer is None:
        raise kernel_pin.refusal(offers, pin)
    return offer


def _download(offer: Offer, pin: Pin, work: Path) -> "_Package":
    """Fetch a package; apt compares it with the signed lists.

    A mirror no longer has what a newer version has replaced: then the lists are too old.
    """
    folder = work / "package"
    folder.mkdir()
    try:
        _apt_get("download", f"{offer.package}={offer.version}", cwd=folder)
    except MagsError:
        offer = _offer_after_update(pin)
        _apt_get("download", f"{offer.package}={offer.version}", cwd=folder)
    (file,) = folder.glob("*.deb")
    return _Package(file, offer)


@dataclass(frozen=True)
class _Package:
    """A package that was fetched."""

    file: Path
    offer: Offer


def _take_out(package: _Package, cache: Path, work: Path) -> Installed:
    tree = work / "tree"
    _run(["dpkg-deb", "-x", str(package.file), str(tree)])
    release, architecture = package.offer.release, platform.machine()
    result = work / "result"
    (result / "modules").mkdir(parents=True)
    image_name = kernel_files.IMAGE_NAMES[architecture]
    try:
        vmlinuz = (tree / "boot" / f"vmlinuz-{release}").read_bytes()
        modules_tree = next(
            path
            for path in (tree / "lib/modules" / release, tree / "usr/lib/modules" / release)
            if path.is_dir()
        )
        modules = kernel_files.modules_of(modules_tree)
    except (OSError, StopIteration) as error:
        text = f"the kernel package {package.file.name} is not laid out as expected"
        raise MagsError(text, repr(error)) from error
    files = {image_name: kernel_files.image_of(vmlinuz, architecture)}
    files |= {f"modules/{name}": content for name, content in modules.items()}
    for name, content in files.items():
        (result / name).write_bytes(content)
    record = {
        "package": package.offer.package,
        "version": package.offer.version,
        "release": release,
        "architecture": architecture,
        "recipe": _RECIPE,
        "image": image_name,
        "modules": list(modules),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    return _publish(cache, result, record)


def _publish(folder: Path, source: Path, record: Mapping[str, Any]) -> Installed:
    """Make the files in `source` the current version of `folder`; link them if possible."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as name:
        aside = Path(name) / "kernel"
        (aside / "modules").mkdir(parents=True)
        for file in record["sha256"]:
            _link(source / file, aside / file)
        write_json(aside / _RECORD, record)
        sync_directory(aside / "modules")
        target = folder / record["version"]
        if target.exists():  # damaged, or made by another recipe
            target.replace(Path(name) / "replaced")
        aside.replace(target)
        before = _current_name(folder)
        link = Path(name) / _CURRENT
        link.symlink_to(record["version"])
        link.replace(folder / _CURRENT)
        sync_directory(folder)
    _remove_others(folder, {record["version"], before})
    return Installed(target, record)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    target.chmod(0o444)
    sync_file(target)


def _current_name(folder: Path) -> str | None:
    link = folder / _CURRENT
    return os.readlink(link) if link.is_symlink() else None


def _remove_others(folder: Path, kept: set[str | None]) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _usable(folder: Path) -> Installed | None:
    """Return the current kernel if it is whole, ours, and what the pin accepts."""
    there = _intact(folder)
    return there if there is not None and Pin.read().accepts(there.version) else None


def _intact(folder: Path) -> Installed | None:
    there = _recorded(folder)
    try:
        if there is None or not _is_ours(there):
            return None
        for name, expected in there.record["sha256"].items():
            if file_sha256(there.directory / name) != expected:
                return None
    except (OSError, AttributeError, KeyError):
        return None
    return there


def _recorded(folder: Path) -> Installed | None:
    try:
        directory = (folder / _CURRENT).resolve(strict=True)
        installed = Installed(directory, read_json(directory / _RECORD))
        return installed if installed.version == directory.name else None
    except (OSError, ValueError, KeyError):
        return None


def _is_ours(there: Installed) -> bool:
    record = there.record
    return record.get("recipe") == _RECIPE and record.get("architecture") == platform.machine()


def _is_time_to_look(folder: Path, look_after: timedelta | None) -> bool:
    if look_after is None:
        return False
    try:
        looked = datetime.fromtimestamp((folder / _LOOKED).stat().st_mtime, UTC)
    except OSError:
        return True
    # A stamp of the future is of a clock that was wrong.
    return not timedelta(0) <= datetime.now(UTC) - looked < look_after


def _check_host() -> None:
    if platform.machine() not in _DEBIAN_NAMES:
        raise MagsError(f"there is no guest kernel for {platform.machine()}")
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(program) is None:
            raise MagsError(f"the guest's kernel is a Debian package, and {program} is not here")


def _meta(pin: Pin) -> str:
    return f"{pin.meta}-{_DEBIAN_NAMES[platform.machine()]}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _apt_cache(*words: str) -> str:
    """Return what apt knows of a package, from its lists; empty when it knows none."""
    try:
        return _run(["apt-cache", "show", *words])
    except MagsError:
        return ""


def _apt_get(*words: str, cwd: Path | None = None) -> None:
    options = ["-qq", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root"]
    _run(["apt-get", *options, *words], cwd)


def _run(command: list[str], cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        tail = (done.stderr or done.stdout)[-1000:].strip()
        raise MagsError(f"`{' '.join(command[:1] + command[-2:])}` failed: {tail}")
    return done.stdout
