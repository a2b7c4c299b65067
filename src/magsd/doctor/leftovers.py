"""What sandboxes left on this host and nobody living needs: found, named, removed.

A daemon clears up behind itself and behind the one before it. What is found
here is what no daemon will: of data directories that were deleted, or whose
daemon does not come back. Something is a leftover only when the kernel shows
that no daemon and no shim of its instance lives. It is looked at again right
before it is removed, and what a process still holds is never touched.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

from magsd.doctor.living import Living, living, processes
from magsd.engine import disk_pool, mounts
from magsd.engine.cgroup import find_controllers
from magsd.engine.network import instance_of, nft, rules
from magsd.engine.network.forwarding import Forwarding
from magsd.engine.network.host import NetworkSettings
from magsd.engine.network.layout import interface_instance, table_instance
from magsd.engine.process import Detached, read_start_time
from magsd.model.names import is_vm_id

_GROUP: Final = re.compile(r"mags-(?:([0-9a-f]{4})|doctor-(\d+))")
_FORWARDER: Final = "magsd.engine.dns_forwarder"
_FOLDER: Final = "mags-doctor-"
_LOOP_CLR_FD: Final = 0x4C01
_DELETED: Final = " (deleted)"


@dataclass(frozen=True)
class Leftover:
    """Something that nobody living needs."""

    kind: str
    name: str
    command: str
    """What removes it by hand."""
    instance: str
    """Whose it was; empty: no instance's alone."""
    remove: Callable[[], None] | None = None
    """None: a person must decide."""


def find(data_dir: Path, but: int | None = None) -> list[Leftover]:
    """Return all leftovers, in the order in which they can be removed. Needs root.

    `data_dir` is where disks and mounts are looked for besides; process `but`
    is no daemon though it holds a lock. Raises `MagsError` when the kernel
    does not tell.
    """
    # What lives is asked last: a daemon that starts meanwhile counts as living.
    found = [*_shims(), *_forwarders(), *_tables(), *_interfaces()]
    found += [*_groups(), *_loop_devices(), *_mounts(data_dir), *_disks(data_dir), *_folders()]
    who = living(but)
    busy = _busy(who)
    return [leftover for leftover in found if leftover.instance not in busy] + _uplinks(who)


def clean(found: Iterable[Leftover], say: Callable[[str], None], but: int | None = None) -> bool:
    """Remove `found`, saying each; return whether nothing is left. `but` as for `find`.

    What has come to life since it was found stays.
    """
    # All are tried, whatever becomes of the first.
    done = [_clean(leftover, say, but) for leftover in found]
    return all(done)


def _clean(leftover: Leftover, say: Callable[[str], None], but: int | None) -> bool:
    name = f"{leftover.kind} {leftover.name}"
    if leftover.remove is None:
        say(f"left     {name}: it lives, so a person must decide; by hand: {leftover.command}")
        return False
    if leftover.instance in _busy(living(but)):
        say(f"left     {name}: it is used again")
        return True
    try:
        leftover.remove()
    except Exception as error:  # noqa: BLE001 - told, and the others are still removed
        say(f"left     {name}: {error}; by hand: {leftover.command}")
        return False
    say(f"removed  {name}")
    if leftover.instance in _busy(living(but)):
        say("         a daemon that uses it started in this very moment: restart that one")
        return False
    return True


def _busy(who: Living) -> frozenset[str]:
    return who.instances | _instances_with_slots()


# --- processes


def _shims() -> Iterator[Leftover]:
    """Yield shims that no daemon could ever find again; their own life keeps nobody else's."""
    who = living()
    for shim in who.shims:
        if shim.is_deleted:
            command = f"kill -9 {shim.pid}"
            name = f"{shim.pid} of {shim.run_directory}, which is deleted"
            # Under no instance: it lives, so its own would never be looked at.
            yield Leftover("shim", name, command, "", None)
        elif shim.data_directory not in who.daemons and not shim.is_known:
            name = f"{shim.pid} without a record in {shim.run_directory}"
            yield Leftover("shim", name, f"kill -9 {shim.pid}", "", None)


def _forwarders() -> Iterator[Leftover]:
    for pid in processes():
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            start_time = read_start_time(pid)
            if _FORWARDER not in words[:5] or start_time is None:
                continue
            policy = json.loads(words[words.index(_FORWARDER) + 1])["policy_fd"]
            file = Path(os.readlink(f"/proc/{pid}/fd/{policy}").removesuffix(_DELETED))
            instance = instance_of(file.parent.parent)
            name = f"{pid} of {file.parent.parent}"
            end = partial(_end, pid, start_time)
            yield Leftover("dns forwarder", name, f"kill {pid}", instance, end)


def _end(pid: int, start_time: int) -> None:
    if (process := Detached.find(pid, start_time)) is not None:
        process.send_signal(signal.SIGTERM)
        process.close()


# --- network


def _names(listing: str) -> Iterator[str]:
    return (line.split()[-1] for line in listing.splitlines())


def _tables() -> Iterator[Leftover]:
    for name in _names(nft.run("list tables inet")):
        if (instance := table_instance(name)) is not None:
            command, remove = f"nft delete table inet {name}", partial(_delete_table, name)
            yield Leftover("firewall table", name, command, instance, remove)


def _delete_table(name: str) -> None:
    nft.run(rules.no_table(name))


def _interfaces() -> Iterator[Leftover]:
    for path in sorted(Path("/sys/class/net").iterdir()):
        instance = interface_instance(path.name)
        # Slots end with whoever holds them, and a peer with its other end.
        if instance is not None and path.name.endswith("-dns"):
            command, remove = f"ip link delete {path.name}", partial(_delete_link, path.name)
            yield Leftover("interface", path.name, command, instance, remove)


def _delete_link(name: str) -> None:
    with IPRoute() as host:
        for index in host.link_lookup(ifname=name):
            host.link("del", index=index)


def _instances_with_slots() -> frozenset[str]:
    """Return the instances with a slot: some process holds it, or it would be gone."""
    names = [path.name for path in Path("/sys/class/net").iterdir()]
    slots = [name for name in names if not name.endswith(("-dns", "-dnp"))]
    return frozenset(found for name in slots if (found := interface_instance(name)))


def _uplinks(who: Living) -> list[Leftover]:
    """Return the note of what forwards for our sake, when nothing of ours is there any more."""
    if who.daemons or who.shims or _instances_with_slots():
        return []
    if rules.UPLINKS_TABLE not in _names(nft.run("list tables inet")):
        return []
    directory = NetworkSettings(instance="", run_directory=Path("/")).host_directory
    forwarding = Forwarding(directory)
    return [
        Leftover(
            "firewall table",
            rules.UPLINKS_TABLE,
            f"nft delete table inet {rules.UPLINKS_TABLE}",
            "",
            partial(forwarding.put_back, _has_no_interface),
        )
    ]


def _has_no_interface() -> bool:
    return not any(interface_instance(path.name) for path in Path("/sys/class/net").iterdir())


# --- control groups


def _groups() -> Iterator[Leftover]:
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    for root in sorted({controller.root for controller in find_controllers(mountinfo).values()}):
        for group in sorted(root.glob("mags-*")):
            match = _GROUP.fullmatch(group.name)
            if match is None or _holds_processes(group) or _is_running(match[2]):
                continue
            command = f"find {group} -depth -type d -exec rmdir {{}} +"
            yield Leftover(
                "control group", str(group), command, match[1] or "", partial(_remove_group, group)
            )


def _is_running(doctor: str | None) -> bool:
    return doctor is not None and read_start_time(int(doctor)) is not None


def _holds_processes(group: Path) -> bool:
    try:
        return any(path.read_text().strip() for path in group.rglob("cgroup.procs"))
    except OSError:  # one goes this very moment: somebody lives who removes it
        return True


def _remove_group(group: Path) -> None:
    # The kernel refuses to remove one that holds a process.
    for child in [path for path in group.iterdir() if path.is_dir()]:
        child.rmdir()
    group.rmdir()


# --- disks


def _loop_devices() -> Iterator[Leftover]:
    """Yield devices of our files that end with no mount: ours do, so these are somebody's by hand."""
    for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            file = Path(path.read_text().strip().removesuffix(_DELETED))
            directory = _directory_of(file)
            is_held = path.with_name("autoclear").read_text().strip() == "1"
            if directory is None or is_held:
                continue
            device = f"/dev/{path.parts[3]}"
            name, command = f"{device} of {file}", f"losetup -d {device}"
            yield Leftover(
                "loop device", name, command, instance_of(directory), partial(_detach, device)
            )


def _directory_of(file: Path) -> Path | None:
    """Return the data directory whose disk or layer this file is; None: no file of ours."""
    is_disk = file.parent.name == "disks" and file.suffix == ".ext4" and is_vm_id(file.stem)
    is_layer = file.parent.name == "layers" and re.fullmatch(r"[0-9a-f]{64}\.sqfs", file.name)
    if file.name == disk_pool.IMAGE and (file.parent / "disks").is_dir():
        return file.parent
    return file.parent.parent if is_disk or is_layer else None


def _detach(device: str) -> None:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _LOOP_CLR_FD)
    finally:
        os.close(descriptor)


def _mounts(data_dir: Path) -> Iterator[Leftover]:
    """Yield mounts in the folders of VMs that this process can see: shims make theirs unseen."""
    runs = data_dir.resolve() / "run"
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    places = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    for place in reversed([place for place in places if runs in place.parents]):
        remove, instance = partial(mounts.unmount, place), instance_of(data_dir)
        yield Leftover("mount", str(place), f"umount {place}", instance, remove)


def _disks(data_dir: Path) -> Iterator[Leftover]:
    """Yield disks of VMs that have no folder: not even their end is still to be recorded."""
    instance = instance_of(data_dir)
    for disk in _unneeded(data_dir / "disks", data_dir):
        yield Leftover("disk", str(disk), f"rm {disk}", instance, disk.unlink)
    pool = data_dir / disk_pool.IMAGE
    names: list[str] = []
    # One that cannot be mounted is told by another check.
    with contextlib.suppress(OSError), disk_pool.shown(pool) as root:
        names = [disk.name for disk in _unneeded(root, data_dir)]
    for name in names:
        remove, text = partial(_remove_pooled, pool, name), f"{name} in {pool}"
        yield Leftover("disk", text, "magsd doctor --clean", instance, remove)


def _unneeded(folder: Path, data_dir: Path) -> list[Path]:
    disks = [disk for disk in folder.glob("*.ext4") if is_vm_id(disk.stem)]
    return sorted(disk for disk in disks if not (data_dir / "run" / disk.stem).exists())


def _remove_pooled(pool: Path, name: str) -> None:
    with disk_pool.shown(pool) as root:
        (root / name).unlink()


def _folders() -> Iterator[Leftover]:
    """Yield the folders of doctors that were killed."""
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_FOLDER}*")):
        is_ours = (folder / "lock").is_file() and not folder.is_symlink()
        if is_ours and folder.stat().st_uid == 0:
            command, remove = f"rm -r {folder}", partial(shutil.rmtree, folder)
            yield Leftover("folder", str(folder), command, instance_of(folder), remove)
