"""Control groups in version 1, version 2 and a mixture, on folders that look like them."""

from pathlib import Path

import pytest

from magsd.engine.cgroup import CgroupTree, Controller, Limits, find_controllers
from magsd.model.errors import LaunchError

LIMITS = Limits(memory_bytes=640 << 20, cpus=1.5, pids=300)
V1 = ("memory", "pids", "cpu", "cpuacct", "freezer")


def line(number: int, where: Path, kind: str, options: str) -> str:
    return f"{number} 31 0:{number} / {where} rw,relatime shared:{number} - {kind} {kind} {options}"


def v1(root: Path) -> str:
    return "\n".join(line(i, root / name, "cgroup", f"rw,{name}") for i, name in enumerate(V1))


def v2(root: Path, offered: str) -> str:
    where = root / "unified"
    where.mkdir(parents=True)
    (where / "cgroup.controllers").write_text(offered)
    return line(99, where, "cgroup2", "rw,nsdelegate")


def test_version_1(tmp_path: Path) -> None:
    found = find_controllers(v1(tmp_path))
    assert found == {name: Controller(tmp_path / name, 1) for name in V1}


def test_controllers_that_share_a_hierarchy(tmp_path: Path) -> None:
    text = line(1, tmp_path / "cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    both = Controller(tmp_path / "cpu,cpuacct", 1)
    assert find_controllers(text)["cpu"] == find_controllers(text)["cpuacct"] == both


def test_version_2_freezes_and_counts_by_itself(tmp_path: Path) -> None:
    found = find_controllers(v2(tmp_path, "cpuset cpu io memory pids\n"))
    unified = Controller(tmp_path / "unified", 2)
    assert {found[name] for name in V1} == {unified}


def test_version_1_comes_before_an_empty_version_2(tmp_path: Path) -> None:
    found = find_controllers(v1(tmp_path) + "\n" + v2(tmp_path, "hugetlb\n"))
    assert {name: found[name].version for name in V1} == dict.fromkeys(V1, 1)


def test_a_host_without_a_controller_is_told_which() -> None:
    with pytest.raises(LaunchError, match=r"memory, pids.*cgroup2"):
        CgroupTree({"cpu": Controller(Path("/x"), 1)}, "00ff")


def tree(root: Path, *, version: int) -> CgroupTree:
    names = V1 if version == 1 else ["one"] * len(V1)
    for name in names:
        (root / name).mkdir(exist_ok=True)
    found = {
        controller: Controller(root / name, version)
        for controller, name in zip(V1, names, strict=True)
    }
    made = CgroupTree(found, "00ff")
    made.prepare()
    return made


def test_limits_of_version_1(tmp_path: Path) -> None:
    group = tree(tmp_path, version=1).create("aa", LIMITS)
    memory = tmp_path / "memory/mags-00ff/aa"
    assert (memory / "memory.limit_in_bytes").read_text() == str(640 << 20)
    # Not every kernel counts swap, and where there is no such file none is made.
    assert not (memory / "memory.memsw.limit_in_bytes").exists()
    cpu = tmp_path / "cpu/mags-00ff/aa"
    assert (cpu / "cpu.cfs_quota_us").read_text() == "150000"
    assert (tmp_path / "pids/mags-00ff/aa/pids.max").read_text() == "300"
    assert len(group.procs_files) == len(V1)
    assert group.oom_file == memory / "memory.oom_control"
    freezer = group.freezer
    assert freezer is not None
    assert (freezer.file.name, freezer.frozen, freezer.thawed) == (
        "freezer.state",
        "FROZEN",
        "THAWED",
    )
    assert freezer.events is None


def test_limits_of_version_2(tmp_path: Path) -> None:
    made = tree(tmp_path, version=2)
    control = "+memory +pids +cpu"
    assert (tmp_path / "one/cgroup.subtree_control").read_text() == control
    assert (tmp_path / "one/mags-00ff/cgroup.subtree_control").read_text() == control
    directory = tmp_path / "one/mags-00ff/aa"
    directory.mkdir()
    (directory / "memory.oom.group").touch()
    group = made.create("aa", LIMITS)
    assert (directory / "memory.max").read_text() == str(640 << 20)
    assert (directory / "memory.oom.group").read_text() == "1"
    assert (directory / "cpu.max").read_text() == "150000 100000"
    assert group.procs_files == [directory / "cgroup.procs"]
    assert group.freezer is not None
    assert (group.freezer.file, group.freezer.frozen) == (directory / "cgroup.freeze", "1")
    assert group.freezer.events == directory / "cgroup.events"


def test_usage_leaves_out_what_the_kernel_gives_back(tmp_path: Path) -> None:
    group = tree(tmp_path, version=1).create("aa", LIMITS)
    for name, file, text in [
        ("memory", "memory.usage_in_bytes", "1000"),
        ("memory", "memory.stat", "cache 400\nshmem 70\ntotal_inactive_file 300\n"),
        ("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("cpuacct", "cpuacct.usage", "12345\n"),
        ("pids", "cgroup.procs", "1\n2\n3\n"),
    ]:
        (tmp_path / name / "mags-00ff/aa" / file).write_text(text)
    usage = group.usage()
    assert (usage.memory_bytes, usage.cpu_ns, usage.processes) == (700, 12345, 3)
    assert group.memory_kills() == 2
    assert group.shared_memory_bytes() == 70


def test_a_group_that_is_not_there_has_no_usage(tmp_path: Path) -> None:
    made = tree(tmp_path, version=1)
    assert made.names() == []
    with pytest.raises(LookupError):
        made.group("aa").usage()
    assert made.group("aa").try_remove()
    made.group("aa").kill()
    made.create("aa", LIMITS)
    assert made.names() == ["aa"]
