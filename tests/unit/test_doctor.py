"""What `magsd doctor` concludes from what it sees."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from magsd.config import Settings
from magsd.doctor import engines, firewall, host, leftovers, network, service, storage
from magsd.doctor.check import Check, Verdict, report
from magsd.doctor.control_groups import describe
from magsd.doctor.leftovers import Leftover
from magsd.engine import accelerator
from magsd.engine.cgroup import Controller

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
LISTING = """
table ip filter {
	chain INPUT {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
	}
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
	chain DOCKER {
		drop
	}
}
table inet mags_0a1b {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table inet mags_uplinks {
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname @opened ct state new drop
	}
}
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		counter packets 7 bytes 420 reject with icmpx admin-prohibited
	}
}
table inet told {
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname "mags*" accept
	}
}
table inet fine {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 192.0.2.1 drop
	}
}
"""
MOUNTS = """\
20 1 254:0 / / rw - ext4 /dev/vda rw
21 20 0:20 / /srv rw - xfs /dev/vdb rw
22 20 0:21 / /srv/with\\040space rw - btrfs /dev/vdc rw
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


def test_foreign_chains_that_drop_are_named():
    assert firewall.dropping_chains(LISTING) == [
        "ip filter INPUT (input)",
        "ip filter FORWARD (forward)",
        "inet firewalld filter_FORWARD (forward)",
    ]
    assert firewall.dropping_chains("") == []


def test_sandboxes_without_rules_are_noticed():
    names = ["eth0", "mags0a1b-1", "magsffff-3", "magsffff-4", "magseeee-dns", "magseeee-dnp"]
    assert firewall.unprotected(LISTING, names) == ["mags_ffff"]


def test_a_line_for_people():
    check = Check("data", Verdict.WARN, "two\nlines", "do this")
    assert check.line() == "warn  data         two lines; do this"


async def _checks(*checks):
    for check in checks:
        yield check


async def test_a_report_says_each_check_when_it_is_done():
    said = []
    good, bad = Check("a", Verdict.WARN, "x"), Check("b", Verdict.FAIL, "y", "z")
    assert await report(_checks(good), said.append)
    assert not await report(_checks(good, bad), said.append)
    assert said == [good.line(), good.line(), bad.line()]


async def test_a_report_for_programs_is_one_object():
    said = []
    check = Check("a", Verdict.FAIL, "x", "y")
    assert not await report(_checks(check), said.append, as_json=True)
    (text,) = said
    assert json.loads(text) == {
        "is_well": False,
        "checks": [{"what": "a", "verdict": "fail", "seen": "x", "step": "y"}],
    }


def test_the_room_is_that_of_the_nearest_directory_there_is(tmp_path):
    assert "GB free" in storage.space(tmp_path / "not" / "yet").seen


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/lib/mags", "ext4"), ("/srv", "xfs"), ("/srvx", "ext4"), ("/srv/with space/a", "btrfs")],
)
def test_the_filesystem_is_that_of_the_closest_mount(path, kind):
    assert storage.filesystem(MOUNTS, Path(path)) == kind


def test_secrets_that_others_can_read_are_named_with_the_command(settings, tmp_path):
    (tmp_path / "mags.db").touch()
    (tmp_path / "mags.db").chmod(0o644)
    tmp_path.chmod(0o777)
    check = storage.permissions(settings)
    assert check.verdict is Verdict.WARN
    assert f"chmod go= {tmp_path}/mags.db" in check.step
    assert f"chmod go-w {tmp_path}" in check.step


async def test_a_missing_image_fails_with_the_next_step(settings):
    check, built_at = await storage.image(settings, NOW)
    assert (check.verdict, built_at) == (Verdict.FAIL, None)
    assert "magsd image build standard" in check.seen


def test_memory_is_judged_by_the_usual_size(settings):
    assert host.memory(settings).seen.count("GiB")
    greedy = settings.model_copy(update={"default_memory_mb": 1 << 40})
    assert host.memory(greedy).verdict is Verdict.FAIL


def test_limits_are_judged_by_how_many_vms_there_may_be(settings):
    check = host.limits(settings.model_copy(update={"vms_max": 10_000_000}))
    assert check.verdict is Verdict.WARN
    assert "kernel.pid_max=1000000000" in check.step
    files = host.open_files(None, settings.model_copy(update={"vms_max": 10_000_000}))
    assert "LimitNOFILE" in files.step or "no limit" in files.seen


def test_a_clock_before_the_image_is_wrong():
    assert host.clock(NOW, datetime(2027, 1, 1, tzinfo=UTC)).verdict is Verdict.WARN
    assert host.clock(NOW, datetime(2026, 1, 1, tzinfo=UTC)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("version", "months", "verdict"),
    [
        ("release-20261001.0", 1, Verdict.OK),
        ("0.0~20240729.0", 27, Verdict.WARN),
        ("of somebody's own", None, Verdict.OK),
    ],
)
def test_the_age_of_runsc(version, months, verdict):
    assert engines.age_months(version, NOW) == months
    assert engines.judge_runsc("seen", version, NOW).verdict is verdict


USABLE = {
    "gvisor": Check("gvisor", Verdict.OK, "runsc"),
    "qemu": Check("qemu", Verdict.WARN, "QEMU", "update its kernel"),
}


def unusable(name):
    return {name: Check(name, Verdict.FAIL, f"{name} is not installed: install it")}


def verdicts(found, wanted):
    return {check.what: check.verdict for check in engines.judge_engines(found, wanted)}


@pytest.mark.parametrize(("missing", "other"), [("qemu", "gvisor"), ("gvisor", "qemu")])
def test_one_engine_is_enough_unless_another_is_wanted(missing, other):
    found = USABLE | unusable(missing)
    for wanted in ("auto", other):
        assert verdicts(found, wanted) == {missing: Verdict.OK, other: USABLE[other].verdict}
    remark = next(c for c in engines.judge_engines(found, "auto") if c.what == missing)
    assert "install it" in remark.seen
    assert f"optional: {other} can be used" in remark.step
    assert verdicts(found, missing)[missing] is Verdict.FAIL


def test_without_any_engine_all_of_them_fail():
    found = unusable("gvisor") | unusable("qemu")
    assert set(verdicts(found, "auto").values()) == {Verdict.FAIL}


@pytest.mark.parametrize(("days", "verdict"), [(0, Verdict.OK), (90, Verdict.WARN)])
def test_the_age_of_the_guests_kernel(days, verdict):
    check = engines.judge_kernel("seen", days)
    assert check.verdict is verdict
    assert f"{days} days ago" in check.seen
    assert ("magsd kernel install" in check.step) is (verdict is Verdict.WARN)


@pytest.mark.parametrize(
    ("finding", "wanted", "word"),
    [
        ("works", "auto", "works: the reason"),
        ("fails", "auto", "not used, microVMs are emulated: the reason"),
        ("untried", "kvm", "not tried yet: the reason"),
        ("works", "tcg", "MAGSD_ACCELERATOR"),
    ],
)
def test_the_verdict_on_kvm_is_told_and_is_no_fault(tmp_path, finding, wanted, word):
    kvm = accelerator.Verdict(accelerator.Finding(finding), "the reason")
    check = engines.judge_kvm(kvm, wanted, tmp_path)
    assert check.verdict is Verdict.OK
    assert word in check.seen
    assert ("untested" in check.seen) is (wanted != "tcg")
    assert (str(tmp_path) in check.step) is (finding == "fails")


async def test_what_is_wanted_and_does_not_work_fails_before_anything_runs(settings, tmp_path):
    wanted = settings.model_copy(update={"engine": "qemu", "data_dir": tmp_path / "nothing"})
    checks = {check.what: check async for check in engines.engines(wanted, NOW)}
    assert checks["qemu"].verdict is Verdict.FAIL
    assert "kvm" not in checks


def test_what_kind_of_control_groups():
    old, new = Controller(Path("/one"), 1), Controller(Path("/two"), 2)
    both = {"memory": old, "pids": old, "cpu": old, "freezer": new}
    assert describe(both).startswith("hybrid: memory (v1)")
    assert describe(dict.fromkeys(both, new)).startswith("version 2: ")


UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "KillMode": "process",
    "Delegate": "yes",
    "NeedDaemonReload": "no",
}


@pytest.mark.parametrize(
    ("change", "verdict", "word"),
    [
        ({}, Verdict.OK, "active and enabled"),
        ({"LoadState": "not-found"}, Verdict.OK, "no unit"),
        ({"KillMode": "control-group"}, Verdict.WARN, "KillMode=process"),
        ({"Delegate": "no"}, Verdict.WARN, "Delegate=yes"),
        ({"NeedDaemonReload": "yes"}, Verdict.WARN, "daemon-reload"),
        ({"ActiveState": "failed"}, Verdict.WARN, "journalctl"),
        ({"UnitFileState": "disabled"}, Verdict.WARN, "systemctl enable"),
    ],
)
def test_the_unit_of_systemd(change, verdict, word):
    check = service.judge_unit(UNIT | change)
    assert check.verdict is verdict
    assert word in check.line()


def test_dns_and_egress_are_told_apart():
    def verdicts(told):
        return [check.verdict for check in network.outwards("mirror", 80, "", told)]

    assert verdicts({"dns": "", "tcp": ""}) == [Verdict.OK, Verdict.OK]
    assert verdicts({"dns": "", "tcp": "timed out"}) == [Verdict.OK, Verdict.WARN]
    assert verdicts({"dns": "no such name"}) == [Verdict.WARN]
    assert verdicts({}) == [Verdict.WARN]
    skipped = network.outwards("", 0, "apt names no host", {})
    assert all("not tried: apt names no host" in check.seen for check in skipped)


def test_whatever_reaches_the_host_fails():
    good = {"dns": "", "tcp": ""}
    assert network.isolation(3, set(), good).verdict is Verdict.OK
    assert network.isolation(3, {"UDP"}, good).verdict is Verdict.FAIL
    metadata = network.isolation(3, set(), good | {"reached 169.254.169.254": ""})
    assert metadata.verdict is Verdict.FAIL
    assert "169.254.169.254" in metadata.seen


def test_what_is_removed_is_said_and_what_cannot_be_is_told():
    def refuse():
        raise OSError("it is busy")

    done, said = [], []
    found = [
        Leftover("disk", "one", "rm one", "", lambda: done.append("one")),
        Leftover("disk", "two", "rm two", "", refuse),
        Leftover("shim", "three", "kill -9 3", ""),
        Leftover("disk", "four", "rm four", "", lambda: done.append("four")),
    ]
    assert not leftovers.clean(found, said.append)
    assert done == ["one", "four"]
    assert said[0] == "removed  disk one"
    assert "it is busy; by hand: rm two" in said[1]
    assert "kill -9 3" in said[2]
