"""What a microVM needs out of an unpacked kernel package: its image, and a few modules.

Owns which modules these are, and the forms that Debian packs kernels and
modules in. Where they come from and where they go is `kernel_package`'s.
"""

import gzip
import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from magsd.model.errors import MagsError

WANTED: Final = (
    "virtio_mmio",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "squashfs",
    "overlay",
)
"""What the agent loads; what these depend on comes with them."""
IMAGE_NAMES: Final = {"x86_64": "vmlinux", "aarch64": "Image"}
_MAGICS: Final = {
    b"\x02\x21\x4c\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"\x1f\x8b": "gzip",
}
_SUFFIXES: Final = {".xz": "xz", ".zst": "zstd", ".gz": "gzip", ".lz4": "lz4"}
_ELF: Final = b"\x7fELF"
_ARM64_MAGIC_AT: Final = 56
_DEPENDS: Final = re.compile(rb"(?:\A|\0)depends=([a-zA-Z0-9_,-]*)\0")


def image_of(vmlinuz: bytes, architecture: str) -> bytes:
    """Return the image that QEMU boots out of what a package has as `vmlinuz`.

    Raises `MagsError` when it is packed in a way that nothing here undoes.
    """
    if architecture == "aarch64":
        image = unpacked(vmlinuz) if _form_of(vmlinuz) else vmlinuz
        if image[_ARM64_MAGIC_AT : _ARM64_MAGIC_AT + 4] != b"ARM\x64":
            raise MagsError("the kernel package holds no arm64 Image: it cannot be used yet")
        return image
    image = unpacked(_payload(vmlinuz))
    if not image.startswith(_ELF):
        raise MagsError("the kernel package holds no ELF vmlinux: it cannot be used yet")
    return image


def _payload(vmlinuz: bytes) -> bytes:
    """Return the packed kernel of a bzImage, see `Documentation/x86/boot.rst` of the kernel."""
    if vmlinuz[0x202:0x206] != b"HdrS" or len(vmlinuz) < 0x250:
        raise MagsError("the kernel package holds no bzImage: it cannot be used yet")
    setup_sectors = vmlinuz[0x1F1] or 4
    offset, length = struct.unpack_from("<II", vmlinuz, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    packed = vmlinuz[start : start + length]
    # All forms but gzip, which has it already, are followed by the size of what is packed.
    return packed if _form_of(packed) == "gzip" else packed[:-4]


def unpacked(packed: bytes) -> bytes:
    """Return what is packed as lz4, zstd, xz or gzip. Raises `MagsError` when it is none."""
    form = _form_of(packed)
    try:
        if form == "gzip":
            return gzip.decompress(packed)
        if form == "xz":
            return lzma.decompress(packed)
        if form == "zstd":
            return _by_program("zstd", packed)
        if form == "lz4":
            return _by_program("lz4", packed)
    except (OSError, EOFError, lzma.LZMAError, subprocess.CalledProcessError) as error:
        raise MagsError(f"the kernel package holds damaged {form}", repr(error)) from error
    raise MagsError(
        "the kernel is packed neither as lz4 nor zstd, xz or gzip: it cannot be unpacked",
        f"it begins with {packed[:8].hex()}",
    )


def _form_of(packed: bytes) -> str | None:
    return next((form for magic, form in _MAGICS.items() if packed.startswith(magic)), None)


def _by_program(program: str, packed: bytes) -> bytes:
    if shutil.which(program) is None:
        raise MagsError(f"the kernel is packed as {program}: run `apt-get install {program}`")
    command = [program, "-d", "-c", "-q"]
    return subprocess.run(command, input=packed, capture_output=True, check=True).stdout


def modules_of(tree: Path, wanted: Iterable[str] = WANTED) -> dict[str, bytes]:
    """Return modules of a `lib/modules/<release>` folder: file name to content, in load order.

    Those that they need come before them; what the kernel has built in is
    left out. Raises `MagsError` when it has one neither way.
    """
    listed = (tree / "modules.builtin").read_text(encoding="utf-8").split()
    builtin = {_canonical(Path(line).name) for line in listed}
    files = {_canonical(path.name): path for path in tree.rglob("*.ko*") if path.is_file()}
    found: dict[str, bytes] = {}
    for name in wanted:
        _add(_canonical(name), files, builtin, found)
    return found


def _add(
    name: str, files: Mapping[str, Path], builtin: Iterable[str], found: dict[str, bytes]
) -> None:
    if name in builtin:
        return
    if name not in files:
        raise MagsError(f"the kernel package has no module {name}: it cannot be used")
    path = files[name]
    file_name = path.name[: path.name.index(".ko")] + ".ko"
    if file_name in found:
        return
    content = path.read_bytes()
    if path.suffix in _SUFFIXES:
        content = unpacked(content)
    # `modules.dep` is made when a package is installed, from these very lines.
    depends = _DEPENDS.search(content)
    for needed in (depends.group(1).decode() if depends else "").split(","):
        if needed:
            _add(_canonical(needed), files, builtin, found)
    found[file_name] = content


def _canonical(name: str) -> str:
    """Return a module's name as the kernel says it: `virtio_rng` for `virtio-rng.ko.xz`."""
    return name.split(".ko")[0].replace("-", "_")
