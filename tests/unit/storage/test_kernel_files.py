"""What is taken out of a kernel package: the image from its form, modules with what they need."""

import gzip
import lzma
import struct

import pytest

from magsd.model.errors import MagsError
from magsd.storage import kernel_files

VMLINUX = b"\x7fELF" + bytes(range(256)) * 8
SETUP_SECTORS = 3


def bzimage(packed: bytes, setup_sectors: int = SETUP_SECTORS) -> bytes:
    """A bzImage as the boot protocol has it, with `packed` a little behind the setup code."""
    start = ((setup_sectors or 4) + 1) * 512
    head = bytearray(start + 100)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 100, len(packed))
    return bytes(head) + packed + b"what follows"


def with_size(packed: bytes) -> bytes:
    return packed + struct.pack("<I", len(VMLINUX))


@pytest.mark.parametrize("setup_sectors", [0, 3, 30])
def test_a_vmlinux_is_taken_out(setup_sectors):
    packed = with_size(lzma.compress(VMLINUX))
    assert kernel_files.image_of(bzimage(packed, setup_sectors), "x86_64") == VMLINUX


def test_gzip_has_the_size_in_it():
    assert kernel_files.image_of(bzimage(gzip.compress(VMLINUX)), "x86_64") == VMLINUX


@pytest.mark.parametrize(
    ("vmlinuz", "said"),
    [
        (b"", "no bzImage"),
        (bytes(4096), "no bzImage"),
        (bzimage(with_size(b"BZh9 something")), "neither as lz4"),
        (bzimage(with_size(lzma.compress(VMLINUX)[:-20])), "damaged xz"),
        (bzimage(gzip.compress(VMLINUX)[:-9]), "damaged gzip"),
        (bzimage(gzip.compress(b"no ELF")), "no ELF"),
    ],
)
def test_what_is_no_kernel_is_said_to_be_none(vmlinuz, said):
    with pytest.raises(MagsError, match=said):
        kernel_files.image_of(vmlinuz, "x86_64")


def test_a_program_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MagsError, match="apt-get install lz4"):
        kernel_files.unpacked(b"\x02\x21\x4c\x18")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_arm64_image_is_taken_as_it_is_or_unpacked(pack):
    image = bytes(56) + b"ARM\x64" + bytes(100)
    assert kernel_files.image_of(pack(image), "aarch64") == image
    with pytest.raises(MagsError, match="arm64"):
        kernel_files.image_of(pack(bytes(200)), "aarch64")


@pytest.fixture
def tree(tmp_path):
    """A `lib/modules/<release>`: overlay, a chain in two forms, one in the kernel."""

    def add(name, depends, pack=bytes):
        path = tmp_path / "kernel" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pack(b"\x7fELF\0license=GPL\0depends=" + depends + b"\0name=x\0"))

    add("overlay.ko", b"")
    add("virtio_net.ko", b"net_failover,virtio")
    add("net_failover.ko.xz", b"failover", lzma.compress)
    add("failover.ko.gz", b"", gzip.compress)
    add("virtio-rng.ko", b"virtio")
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\n")
    return tmp_path


def test_modules_come_after_what_they_need(tree):
    modules = kernel_files.modules_of(tree, ["virtio_net", "virtio-rng", "overlay", "failover"])
    order = ["failover.ko", "net_failover.ko", "virtio_net.ko", "virtio-rng.ko", "overlay.ko"]
    assert list(modules) == order
    assert all(content.startswith(b"\x7fELF") for content in modules.values())


def test_a_module_that_is_missing_is_named(tree):
    (tree / "kernel/failover.ko.gz").unlink()
    with pytest.raises(MagsError, match="no module failover"):
        kernel_files.modules_of(tree, ["virtio_net"])
