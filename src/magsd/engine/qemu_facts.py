"""What a saved machine depends on: where all of it is the same, another can go on from there."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magsd.engine import qemu_spec as spec
from magsd.engine.base import Plan


def of_host(
    *,
    build: str,
    accelerator: spec.Accelerator,
    machine: str,
    kernel: str,
    initramfs: int,
    command_line: str,
    guest_files: Mapping[str, bytes],
    nameserver: str,
) -> dict[str, Any]:
    """Return what is the same for all machines of one engine, whatever their image."""
    return {
        "qemu": build,
        "accelerator": accelerator.name,
        "processor": _processor(),
        "machine": machine,
        "kernel": kernel,
        "initramfs": _digest(initramfs),
        "command_line": command_line,
        "files": _digest_of_files(guest_files),
        "nameserver": nameserver,
    }


def of_plan(plan: Plan) -> dict[str, Any]:
    """Return what a machine's own plan adds to that."""
    size = spec.Size.of(plan)
    return {
        "layers": [path.name for path in plan.layers],
        "processors": size.processors,
        "memory_mb": size.memory_mb,
        "disk_gb": plan.disk_gb,
        "pids_limit": plan.pids_limit,
        "network": plan.network,
    }


def _processor() -> str:
    """Return the model of this host's processor, or its architecture where it has no name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _digest(descriptor: int) -> str:
    size_bytes = os.fstat(descriptor).st_size
    return hashlib.sha256(os.pread(descriptor, size_bytes, 0)).hexdigest()


def _digest_of_files(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
