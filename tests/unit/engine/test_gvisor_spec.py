"""What runsc and the shim are told, and how runsc's last words are read."""

import json
from pathlib import Path

import pytest

from magsd.engine import gvisor_spec as spec
from magsd.engine.base import Plan
from magsd.engine.launch_shim import ShimPlan
from magsd.guest.wire import parse_fields
from magsd.model.names import VmId

PLACES = spec.Places(Path("/data/run/00c0ffee"), Path("/data/guest/abc"))


def plan(**changes) -> Plan:
    values = {
        "vm": VmId("00c0ffee"),
        "epoch": 3,
        "image": "standard",
        "layers": (Path("/l/a.sqfs"), Path("/l/b.sqfs"), Path("/l/c.sqfs")),
        "hostname": "name",
        "vcpus": 1.0,
        "memory_mb": 512,
        "disk_gb": 2,
        "pids_limit": 100,
    }
    return Plan(**{**values, **changes})


def test_the_last_layer_is_on_top() -> None:
    assert spec.overlay(plan()) == "m/root:m/d/upper:m/d/work:m/2:m/1:m/0:m/p"


def test_the_overlay_of_many_layers_fits_a_page() -> None:
    layers = tuple(Path(f"/l/{number}.sqfs") for number in range(500))
    assert len(spec.overlay(plan(layers=layers))) < 4000


@pytest.mark.parametrize(("network", "path"), [(True, "/proc/1/ns/net"), (False, None)])
def test_a_vm_without_network_joins_none(network: bool, path: str | None) -> None:
    document = json.loads(spec.config(plan(network=network), PLACES))
    namespaces = {entry["type"]: entry.get("path") for entry in document["linux"]["namespaces"]}
    assert namespaces["network"] == path
    assert set(namespaces) == {"pid", "ipc", "uts", "mount", "network"}
    flag = f"--network={'sandbox' if network else 'none'}"
    assert flag in spec.command(Path("/usr/bin/runsc"), plan(network=network))


def test_nothing_of_the_host_but_the_agent_is_mounted() -> None:
    document = json.loads(spec.config(plan(), PLACES))
    binds = [mount for mount in document["mounts"] if mount["type"] == "bind"]
    assert [(bind["source"], bind["options"]) for bind in binds] == [
        ("/data/guest/abc", ["bind", "ro"])
    ]
    assert document["root"]["path"] == "/data/run/00c0ffee/m/root"
    assert document["hostname"] == "name"


@pytest.mark.parametrize(("vcpus", "count"), [(0.1, 2), (1.0, 2), (2.01, 3), (4.0, 4)])
def test_two_cpus_are_seen_at_least(vcpus: float, count: int) -> None:
    assert spec.cpu_count(plan(vcpus=vcpus)) == count


def test_the_guests_memory_is_what_was_planned() -> None:
    assert spec.meminfo(plan(memory_mb=300)) == b"MemTotal:       307200 kB\n"


LOST = 'W1 sandbox.go:1] Wait RPC to container "x" failed: EOF. Will try waiting on the sandbox process instead.'


@pytest.mark.parametrize(
    ("lines", "is_killed"),
    [
        (
            ["the engine exited with code 137: a", LOST, "I1 main.go:2] Exiting with status: 9"],
            True,
        ),
        (["the engine exited with code 137: a", "I1 main.go:2] Exiting with status: 9"], False),
        (["b", LOST, "I1 main.go:2] Exiting with status: 35072"], False),
        ([], False),
    ],
)
def test_who_killed_whom(lines: list[str], is_killed: bool) -> None:
    assert spec.sandbox_was_killed("\n".join(lines) + "\n") is is_killed


def test_a_shims_plan_keeps_its_order_and_names_descriptors_once() -> None:
    shim = ShimPlan()
    shim.add("vm", "00c0ffee")
    shim.add_descriptor("hold", 7)
    shim.add_descriptor("disk", 9, "m/d")
    shim.add_descriptor("hold", 7)
    shim.add_each("arg", ["a", "b=c"])
    assert shim.encode() == b"vm=00c0ffee\0hold=7\0disk=9:m/d\0hold=7\0arg=a\0arg=b=c\0"
    assert parse_fields(shim.encode()).all("arg") == ["a", "b=c"]
    assert sorted(shim.descriptors) == [7, 9]
    with pytest.raises(ValueError, match="NUL"):
        shim.add("arg", "a\0uid=0")
