"""The kernel of a microVM's guest, as it lies in a folder of kernels.

Owns how such a folder is read. Getting a kernel, checking what came and
replacing it belong to `storage.kernel_package`; what is made of it for a boot
to `initramfs`.

A folder of kernels (`build/kernel`, or `kernel` in a data directory) holds a
folder for each version, with `kernel.json` in it, and the link `current`.
"""

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from magsd.model.errors import LaunchError

_CURRENT: Final = "current"
_NEXT_STEP: Final = "run `magsd kernel install`"


@dataclass(frozen=True)
class Kernel:
    """One version of the guest's kernel. Its paths stay valid when another is installed."""

    image: Path
    """What is booted: an uncompressed ELF `vmlinux` (x86_64) or `Image` (aarch64)."""
    modules: tuple[Path, ...]
    """Uncompressed modules in the order in which they can be loaded."""
    version: str
    """Of the package: `6.1.192-2`."""
    release: str
    """What `uname -r` says: `6.1.0-56-cloud-amd64`."""
    digest: str
    """Names the content of image and modules, and the order of these, together."""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return the current one of a folder of kernels.

        Files are looked for, not read: `install_kernel` has compared them with
        their hashes. Raises `LaunchError` whose message says what is missing
        and the next step.
        """
        try:
            # Resolved, so that the paths name this version also when `current` moves on.
            folder = (directory / _CURRENT).resolve(strict=True)
            record = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
            kernel, architecture = cls._of(folder, record), record["architecture"]
        except FileNotFoundError as error:
            raise LaunchError(f"there is no guest kernel: {_NEXT_STEP}", str(error)) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = f"the guest kernel's record cannot be read: {_NEXT_STEP}"
            raise LaunchError(text, f"{directory}: {error!r}") from error
        if architecture != platform.machine():
            text = f"the guest kernel is for {architecture}: {_NEXT_STEP}"
            raise LaunchError(text, f"{folder} on {platform.machine()}")
        for path in (kernel.image, *kernel.modules):
            if not path.is_file():
                text = f"{path.name} of the guest kernel is missing: {_NEXT_STEP}"
                raise LaunchError(text, str(path))
        return kernel

    @classmethod
    def _of(cls, folder: Path, record: dict[str, Any]) -> Self:
        names = [record["image"], *(f"modules/{name}" for name in record["modules"])]
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name} {record['sha256'][name]}\n".encode())
        return cls(
            image=folder / names[0],
            modules=tuple(folder / name for name in names[1:]),
            version=record["version"],
            release=record["release"],
            digest=digest.hexdigest(),
        )
