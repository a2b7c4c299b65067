"""What the pretended agent does to its VM when it is asked to (`control`)."""

import posixpath
from errno import EINVAL, ENOENT, ENOSYS
from typing import Final

from magsd.engine.fake.machine import Machine
from magsd.guest.state import EndCode
from magsd.guest.wire import Fields

_BOUND: Final = "/run/mags/root"

Answer = list[tuple[str, str]]


def answer(machine: Machine, fields: Fields) -> Answer:
    """Do what the second word says; return what is answered. Raises `OSError`."""
    match fields.words[1]:
        case "identity":
            return _identity(machine, fields)
        case "bind":
            return _bind(machine, fields)
        case "uploads":
            return _show(machine, fields)
        case "stats":
            now_ns = round(machine.world.clock.monotonic() * 1e9)
            numbers = (len(machine.programs), machine.cpu_ns, now_ns)
            return list(zip(("processes", "cpu_ns", "now_ns"), map(str, numbers), strict=True))
        case "quiesce":
            return []
        case "poweroff":
            machine.end(EndCode.AGENT_DIED, "the VM was powered off")
            return []
        case _:
            raise OSError(ENOSYS, "the agent knows no such control")


def _identity(machine: Machine, fields: Fields) -> Answer:
    name = fields.get("hostname")
    if not name or len(name) > 64 or not name.isprintable():
        raise OSError(EINVAL, "no such hostname is possible")
    machine.hostname = name
    machine.write("/etc/hostname", f"{name}\n".encode())
    machine.write("/etc/hosts", f"127.0.0.1 localhost {name}\n".encode())
    if machine_id := fields.get("machine_id"):
        machine.write("/etc/machine-id", f"{machine_id}\n".encode())
    # The clock is the host's, and nothing inside is random.
    return [("kept", what) for what in ("clock", "entropy")]


def _bind(machine: Machine, fields: Fields) -> Answer:
    absent: Answer = []
    for path in fields.all("path"):
        target = posixpath.normpath(f"/{path}")
        try:
            content = machine.read(f"{_BOUND}{target}")
        except OSError:
            raise OSError(ENOENT, f"nothing was written for {target}") from None
        if machine.has_file(target):
            machine.write(target, content)
        else:
            absent.append(("absent", target))
    return absent


def _show(machine: Machine, fields: Fields) -> Answer:
    for name in fields.all("name"):
        if not name or "/" in name or name in (".", ".."):
            raise OSError(EINVAL, "not a file's name")
        # There are no links here, and one to nothing could not be read.
        if machine.has_file(f"/root/{name}"):
            machine.write(f"/uploads/{name}", machine.read(f"/root/{name}"))
    return []
