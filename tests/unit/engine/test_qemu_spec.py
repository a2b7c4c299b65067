"""What QEMU is told, on both architectures, with KVM and without."""

from pathlib import Path

import pytest

from magsd.engine import qemu_spec as spec
from magsd.engine.base import Plan
from magsd.engine.qemu_machine import MACHINES
from magsd.model.names import VmId

CLONE = spec.Descriptors(monitor=10, layers=(11, 12), disk=13, tap=14)
TEMPLATE = spec.Descriptors(monitor=10, layers=(11, 12), disk=13, tap=None)
SIZE = spec.Size(2, 512)

TCG = spec.Accelerator("tcg")


def plan(**changes) -> Plan:
    fields = {
        "vm": VmId("00c0ffee"),
        "epoch": 1,
        "image": "standard",
        "layers": (),
        "hostname": "h",
        "vcpus": 1.0,
        "memory_mb": 256,
        "disk_gb": 2,
        "pids_limit": 100,
    }
    return Plan(**{**fields, **changes})


def command(architecture: str, accelerator: str, descriptors=CLONE) -> list[str]:
    return spec.command(
        MACHINES[architecture],
        spec.Accelerator(accelerator),
        SIZE,
        descriptors,
        ["memory-backend-ram", "id=mem"],
        spec.boot(20, 21, "quiet"),
    )


def test_the_command_line_of_a_boot():
    assert command("x86_64", "tcg") == [
        "/usr/bin/qemu-system-x86_64",
        "-M",
        "microvm,x-option-roms=off,isa-serial=off,memory-backend=mem",
        "-accel",
        "tcg,thread=multi,tb-size=128",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "512M",
        "-object",
        "memory-backend-ram,id=mem,size=512M",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-chardev",
        "socket,id=monitor,fd=10,server=on,wait=off",
        "-mon",
        "chardev=monitor,mode=control",
        "-chardev",
        "socket,id=agent,fd=0",
        "-device",
        "virtio-serial-device,id=serial",
        "-device",
        "virtserialport,chardev=agent,name=agent",
        "-add-fd",
        "fd=11,set=0",
        "-blockdev",
        "driver=file,node-name=file0,filename=/dev/fdset/0,read-only=on",
        "-blockdev",
        "driver=raw,node-name=disk0,file=file0,read-only=on",
        "-device",
        "virtio-blk-device,drive=disk0,id=blk0,werror=report",
        "-add-fd",
        "fd=12,set=1",
        "-blockdev",
        "driver=file,node-name=file1,filename=/dev/fdset/1,read-only=on",
        "-blockdev",
        "driver=raw,node-name=disk1,file=file1,read-only=on",
        "-device",
        "virtio-blk-device,drive=disk1,id=blk1,werror=report",
        "-add-fd",
        "fd=13,set=2",
        "-blockdev",
        (
            "driver=file,node-name=file2,filename=/dev/fdset/2,read-only=off,discard=unmap,"
            "cache.no-flush=on"
        ),
        "-blockdev",
        "driver=raw,node-name=disk2,file=file2,read-only=off,discard=unmap,detect-zeroes=unmap",
        "-device",
        "virtio-blk-device,drive=disk2,id=blk2,werror=report",
        "-netdev",
        "tap,id=net,fd=14",
        "-device",
        "virtio-net-device,netdev=net,mac=52:54:00:00:00:01",
        "-device",
        "virtio-rng-device",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-kernel",
        "/proc/self/fd/20",
        "-initrd",
        "/proc/self/fd/21",
        "-append",
        "quiet",
    ]


def test_another_architecture_differs_by_its_machine_alone():
    changed = [
        (here, there)
        for here, there in zip(command("x86_64", "tcg"), command("aarch64", "tcg"), strict=True)
        if here != there
    ]
    assert changed == [
        ("/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-aarch64"),
        (
            "microvm,x-option-roms=off,isa-serial=off,memory-backend=mem",
            "virt,gic-version=max,highmem=on,memory-backend=mem",
        ),
    ]


@pytest.mark.parametrize("architecture", MACHINES)
def test_kvm_differs_by_its_flags_alone(architecture):
    both = zip(command(architecture, "kvm"), command(architecture, "tcg"), strict=True)
    assert [pair for pair in both if pair[0] != pair[1]] == [
        ("kvm", "tcg,thread=multi,tb-size=128"),
        ("host", "max"),
    ]


def test_the_command_lines_of_kvm():
    assert command("x86_64", "kvm")[:15] == [
        "/usr/bin/qemu-system-x86_64",
        "-M",
        "microvm,x-option-roms=off,isa-serial=off,memory-backend=mem",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        "2",
        "-m",
        "512M",
        "-object",
        "memory-backend-ram,id=mem,size=512M",
        "-nodefaults",
        "-no-user-config",
    ]
    assert command("aarch64", "kvm")[1:7] == [
        "-M",
        "virt,gic-version=max,highmem=on,memory-backend=mem",
        "-accel",
        "kvm",
        "-cpu",
        "host",
    ]


def devices(words: list[str]) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == "-device"]


def test_a_template_has_the_devices_of_its_clones_in_the_same_order():
    assert devices(command("x86_64", "tcg", TEMPLATE)) == devices(command("x86_64", "tcg", CLONE))


def test_a_template_leads_nowhere():
    words = command("x86_64", "tcg", TEMPLATE)
    assert "hubport,id=net,hubid=0" in words
    assert not [word for word in words if word.startswith("tap")]


def test_memory_is_a_file_that_is_shared_or_copied():
    assert spec.file_memory(7, is_shared=True)[-2:] == ["mem-path=/proc/self/fd/7", "share=on"]
    assert spec.file_memory(7, is_shared=False)[-1] == "share=off"


def test_a_kernel_that_is_emulated_is_told_the_frequency():
    machine = MACHINES["x86_64"]
    told = spec.kernel_command_line(machine, TCG, 2596128).split()
    assert told[-2:] == ["norandmaps", "tsc_early_khz=2596128"]
    assert "tsc" not in spec.kernel_command_line(MACHINES["aarch64"], TCG, None)


def test_a_kernel_on_kvm_is_told_the_same_but_what_helps_an_emulator():
    machine = MACHINES["x86_64"]
    emulated = spec.kernel_command_line(machine, TCG, 2596128)
    on_kvm = spec.kernel_command_line(machine, spec.Accelerator("kvm"), None)
    assert emulated == on_kvm + " norandmaps tsc_early_khz=2596128"


@pytest.mark.parametrize(("vcpus", "processors"), [(0.5, 1), (1, 1), (1.5, 2), (4, 4)])
def test_a_guest_has_whole_processors(vcpus, processors):
    assert spec.Size.of(plan(vcpus=vcpus)) == spec.Size(processors, 256)


def test_the_agent_is_told_what_its_root_is_made_of():
    layers = (Path("a"), Path("b"))
    assert spec.root_fields(plan(layers=layers), slots=2) == {
        "layer": ["vda", "vdb"],
        "disk": "vdc",
        "pids": "100",
    }
    assert spec.network_fields(plan()) == {"address": "10.0.2.15/24", "gateway": "10.0.2.2"}
    assert spec.network_fields(plan(network=False)) == {}
