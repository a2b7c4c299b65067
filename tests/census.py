"""What sandboxes can leave on a host, counted: take one before, one after, and compare.

`take()` looks at the whole host, `take(data_directory)` only at what belongs to
that data directory: for a test beside which other daemons come and go. The
kernel clears some things after the fact, so `assert_same` waits for it.

VMs that wait in a pool come and go too. Whoever says which ones wait has them
counted by kind: all that there is of one is a single line, without its name and
numbers, so that one more is nothing new, and one that is unlike the others is.
"""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from magsd.engine.disk_pool import IMAGE
from magsd.engine.network import instance_of
from tests import pooled

PATIENCE_S = 10.0
LOOK_S = 0.05

_OURS = re.compile(r"runsc|mags|^exe$|mkfs\.ext4|mksquashfs")
_DATA = ("disks", "run", "tmp")
_NUMBER = re.compile(r"\b(?:loop)?\d+\b")


@dataclass(frozen=True)
class Census:
    """Everything found, a line each."""

    lines: frozenset[str]


def take(data_directory: Path | None = None, waiting: Collection[str] = ()) -> Census:
    """Count processes, mounts, namespaces, interfaces, rules, groups, devices, sockets, files.

    `waiting` names the VMs that wait in a pool.
    """
    directory = data_directory.resolve() if data_directory else None
    counters: tuple[Callable[[Path | None], Iterator[str]], ...] = (
        _processes,
        _zombies,
        _own_mounts,
        _own_descriptors,
        _interfaces,
        _tables,
        _cgroups,
        _loop_devices,
        _sockets,
        _files,
    )
    lines = [line for counter in counters for line in counter(directory)]
    return Census(frozenset(_by_kind(lines, waiting)))


def difference(before: Census, after: Census) -> list[str]:
    """Return what is there now and was not before."""
    return sorted(after.lines - before.lines)


def left_behind(
    before: Census,
    data_directory: Path | None = None,
    ignoring: tuple[str, ...] = (),
    waiting: Callable[[], Collection[str]] = tuple,
) -> list[str]:
    """Return what is there now and was not before, once the kernel had time to clear up.

    Lines that begin with one of `ignoring` do not count; `waiting` tells, each
    time, which VMs wait in a pool.
    """
    deadline = time.monotonic() + PATIENCE_S
    while left := [
        line
        for line in difference(before, take(data_directory, waiting()))
        if not line.startswith(ignoring)
    ]:
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
    return left


def assert_same(
    before: Census,
    data_directory: Path | None = None,
    waiting: Callable[[], Collection[str]] = tuple,
) -> None:
    """Fail, with a list, when something is there that was not before."""
    left = left_behind(before, data_directory, waiting=waiting)
    assert not left, "left behind:\n" + "\n".join(left)


def _by_kind(lines: Sequence[str], waiting: Collection[str]) -> Iterator[str]:
    """Yield a line for each kind of thing that waiting VMs have, and the others as they are."""
    interfaces = [line for line in lines if line.startswith("interface ")]
    # Each has one, and what counts is how many there are.
    others = interfaces[: max(0, len(interfaces) - len(waiting))]
    for line in [*others, *(line for line in lines if not line.startswith("interface "))]:
        if (vm := next((vm for vm in waiting if vm in line), None)) is None:
            yield line
        else:
            yield f"of a waiting VM: {_NUMBER.sub('N', line.replace(vm, 'VM'))}"


def _pids() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdigit())


def _processes(directory: Path | None) -> Iterator[str]:
    """Living processes of sandboxes; with a data directory, those that have to do with it."""
    for path in _pids():
        with contextlib.suppress(OSError):
            name = (path / "comm").read_text().strip()
            state = (path / "stat").read_text().rpartition(") ")[2].split()[0]
            if state in "ZX" or not _is_ours(path, name, directory):
                continue
            yield f"process {path.name} {name}, network namespace {_namespace(path)}{_vm(path)}"


def _vm(path: Path) -> str:
    """Say of which VM a process is, where its folder or its group tells."""
    with contextlib.suppress(OSError):
        told = f"{os.readlink(path / 'cwd')}\n{(path / 'cgroup').read_text()}"
        if found := re.search(r"/(?:run|mags-[^/]+)/([0-9a-f]{8})$", told, re.MULTILINE):
            return f", VM {found[1]}"
    return ""


def _is_ours(path: Path, name: str, directory: Path | None) -> bool:
    if path.name == str(os.getpid()):
        return False
    if directory is None:
        return _OURS.search(name) is not None
    if f"mags-{instance_of(directory)}/" in (path / "cgroup").read_text():
        return True
    place = str(directory)
    with contextlib.suppress(OSError):
        if os.readlink(path / "cwd").startswith(place):
            return True
    return place in (path / "cmdline").read_text(errors="replace")


def _namespace(path: Path) -> str:
    try:
        return os.readlink(path / "ns/net")
    except OSError:
        return "unknown"


def _zombies(_: Path | None) -> Iterator[str]:
    """Children of this process that nobody waited for."""
    for path in _pids():
        with contextlib.suppress(OSError):
            name, _, rest = (path / "stat").read_text().partition(" (")[2].rpartition(") ")
            state, parent = rest.split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                yield f"zombie {path.name} {name}"


def _own_mounts(directory: Path | None) -> Iterator[str]:
    """Mounts that this process can see; the engine's own lie where nobody sees them."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if directory is None or str(directory) in line:
            yield f"mount {line}"


def _own_descriptors(_: Path | None) -> Iterator[str]:
    """Descriptors of this process that hold something of a sandbox."""
    kinds = re.compile(r"^(net|mnt|pid):|anon_inode:\[?(pidfd|eventfd)|memfd:|\.ext4|\.sqfs|cgroup")
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(path)
            if kinds.search(target):
                yield f"descriptor {path.name} {target}"


def _interfaces(directory: Path | None) -> Iterator[str]:
    """By number: spare ones come and go, what counts is how many there are."""
    prefix = f"mags{instance_of(directory)}-" if directory else "mags"
    found = [path for path in Path("/sys/class/net").iterdir() if path.name.startswith(prefix)]
    yield from (f"interface {prefix}: number {number + 1}" for number in range(len(found)))


def _tables(directory: Path | None) -> Iterator[str]:
    prefix = f"mags_{instance_of(directory)}" if directory else "mags"
    listing = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=True)
    for item in json.loads(listing.stdout)["nftables"]:
        if (name := item.get("table", {}).get("name", "")).startswith(prefix):
            yield f"nft table {name}"


def _cgroups(directory: Path | None) -> Iterator[str]:
    pattern = f"mags-{instance_of(directory)}" if directory else "mags-*"
    root = Path("/sys/fs/cgroup")
    for parent in [*root.glob(pattern), *root.glob(f"*/{pattern}")]:
        yield f"cgroup {parent}"
        yield from (f"cgroup {path}" for path in parent.iterdir() if path.is_dir())


def _loop_devices(directory: Path | None) -> Iterator[str]:
    """Those in use; one has a backing file only then. Layers and pool stay while a daemon lives."""
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            file = path.read_text().strip()
            stays = file.removesuffix(" (deleted)").endswith((".sqfs", f"/{IMAGE}"))
            if directory is None or (file.startswith(str(directory)) and not stays):
                yield f"loop device {path.parts[3]} {file}"
    for name in pooled.inner_loop_devices(directory) if directory else ():
        yield f"loop device {name} in the pool"


def _sockets(directory: Path | None) -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        name = line.split()[-1]
        if directory is not None and name.startswith(str(directory)):
            yield f"socket {name}"


def _files(directory: Path | None) -> Iterator[str]:
    """What lies in the folders that empty themselves; spare and blank disks are meant to stay."""
    for name in _DATA if directory else ():
        folder = directory / name
        # Unlike `rglob` it does not mind that a folder goes away meanwhile.
        inside = os.walk(folder)
        for path in (Path(place, each) for place, *names in inside for each in chain(*names)):
            if not {folder / "spare", folder / "blank"} & {path, path.parent}:
                yield f"file {path.relative_to(directory)}"
    for name in pooled.names(directory) if directory else ():
        yield f"file {name} in the pool"
