"""What carries out the instructions of microVMs here: KVM where it is proven, else emulation.

Owns the verdict on KVM: what it holds for, where it is kept, and what follows
from it. How it is come to is `accelerator_probe`'s.

That there is a device node proves nothing: on hosts that are VMs themselves
guests may hang in a KVM that opens and answers as any other.
"""

import contextlib
import json
import os
import shutil
import stat
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog

from magsd.engine.accelerator_device import NODE

_log: Final = structlog.get_logger()

KVM: Final = "kvm"
TCG: Final = "tcg"
KVM_REMARK: Final = "KVM is untested: the project's conformance suite has not run on it yet"
"""Said wherever KVM is used or offered, until the suite has run green on real KVM."""

_FILE: Final = "accelerator.json"
_FORM: Final = 1
"""Raise it when the probe tries more than it did: older verdicts do not count then."""
_AGAIN: Final = "`magsd serve` tries again when the file {file} is removed"


class Finding(StrEnum):
    """What is known of KVM."""

    WORKS = "works"
    FAILS = "fails"
    UNTRIED = "untried"


@dataclass(frozen=True)
class Verdict:
    """Whether KVM may be used, and why that is so."""

    finding: Finding
    why: str

    @property
    def is_proven(self) -> bool:
        """Whether machines have been seen to work with it here."""
        return self.finding is Finding.WORKS


@dataclass(frozen=True)
class Facts:
    """What a verdict holds for: when one of them changes KVM is tried again."""

    kernel: str
    """The guest's, by its digest."""
    qemu: str
    """The build."""
    host_kernel: str
    """Its release."""
    host_boot: str


@dataclass(frozen=True)
class Choice:
    """What the engine is to use."""

    name: str
    """`kvm` or `tcg`."""
    refusal: str = ""
    """Why the engine cannot be used at all; empty when it can."""


def chosen(wanted: str, verdict: Verdict) -> Choice:
    """Return what follows from the setting (`auto`, `kvm` or `tcg`) and the verdict. Pure."""
    if wanted == TCG or (wanted == "auto" and not verdict.is_proven):
        return Choice(TCG)
    if verdict.is_proven:
        return Choice(KVM)
    return Choice(
        KVM,
        f"KVM is wanted (MAGSD_ACCELERATOR=kvm) and cannot be used: {verdict.why}; "
        "set MAGSD_ACCELERATOR=auto to go without where it does not work",
    )


def seen_without_trying(node: Path = NODE) -> Verdict | None:
    """Return the verdict where a look at the device node is enough; else None."""
    try:
        if not stat.S_ISCHR(node.stat().st_mode):
            return Verdict(Finding.FAILS, f"{node} is no device")
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Verdict(Finding.FAILS, f"there is no {node}")
    except OSError as error:
        return Verdict(Finding.FAILS, f"{node} cannot be opened: {error.strerror}")
    return None


def how_to_try_again(directory: Path) -> str:
    """Return what makes a kept verdict void, for people; `directory` keeps it."""
    return _AGAIN.format(file=directory / _FILE)


def remembered(directory: Path, facts: Facts) -> Verdict | None:
    """Return the verdict that `directory` keeps; None when there is none for these facts."""
    try:
        kept = json.loads((directory / _FILE).read_text(encoding="utf-8"))
        if kept["form"] != _FORM or kept["facts"] != asdict(facts):
            return None
        return Verdict(Finding(kept["finding"]), str(kept["why"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(directory: Path, facts: Facts, verdict: Verdict) -> None:
    """Keep a verdict, whole or not at all; when that fails KVM is tried again at the next start."""
    content = {"form": _FORM, **asdict(verdict), "facts": asdict(facts)}
    aside = directory / f".{_FILE}"
    try:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        aside.replace(directory / _FILE)
    except OSError as error:
        _log.warning("accelerator_verdict_not_kept", error=str(error))


def hand_on(directory: Path, to: Path) -> None:
    """Give another directory the verdict that one keeps, if it keeps one."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(directory / _FILE, to / _FILE)
