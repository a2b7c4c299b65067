"""What follows from a verdict on KVM, what a verdict holds for, and where it is kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from magsd import engines
from magsd.config import Settings
from magsd.engine import accelerator
from magsd.engine.accelerator import Choice, Facts, Finding, Verdict

FACTS = Facts(kernel="a1", qemu="7.2.22 (Debian)", host_kernel="6.1.0-1", host_boot="b1")
WORKS = Verdict(Finding.WORKS, "it was tried")
FAILS = Verdict(Finding.FAILS, "it hung")
UNTRIED = Verdict(Finding.UNTRIED, "there is no kernel")


@pytest.mark.parametrize(
    ("wanted", "verdict", "name"),
    [
        ("auto", WORKS, "kvm"),
        ("auto", FAILS, "tcg"),
        ("auto", UNTRIED, "tcg"),
        ("tcg", WORKS, "tcg"),
        ("tcg", FAILS, "tcg"),
        ("kvm", WORKS, "kvm"),
    ],
)
def test_kvm_is_used_where_it_is_proven_and_not_ruled_out(wanted, verdict, name):
    assert accelerator.chosen(wanted, verdict) == Choice(name)


@pytest.mark.parametrize("verdict", [FAILS, UNTRIED])
def test_kvm_that_is_insisted_on_and_not_proven_is_refused_with_the_reason(verdict):
    refusal = accelerator.chosen("kvm", verdict).refusal
    assert verdict.why in refusal
    assert "MAGSD_ACCELERATOR=auto" in refusal


@pytest.mark.parametrize(
    ("there", "verdict", "wanted", "engine"),
    [
        (("gvisor", "qemu"), WORKS, "auto", "qemu"),
        (("gvisor", "qemu"), WORKS, "tcg", "gvisor"),
        (("gvisor", "qemu"), FAILS, "auto", "gvisor"),
        (("gvisor", "qemu"), UNTRIED, "kvm", "gvisor"),
        (("qemu",), FAILS, "auto", "qemu"),
        (("qemu",), FAILS, "kvm", "qemu"),
        (("gvisor",), WORKS, "auto", "gvisor"),
        ((), UNTRIED, "auto", "gvisor"),
    ],
)
def test_auto_takes_kvm_then_gvisor_then_emulation(tmp_path, there, verdict, wanted, engine):
    settings = Settings(data_dir=tmp_path, accelerator=wanted)
    assert engines.chosen(settings, there, verdict) == engine


@pytest.mark.parametrize("engine", ["gvisor", "qemu"])
def test_an_engine_that_is_named_is_taken(tmp_path, engine):
    settings = Settings(data_dir=tmp_path, engine=engine)
    for verdict in (WORKS, FAILS):
        assert engines.chosen(settings, ("gvisor", "qemu"), verdict) == engine


@pytest.mark.parametrize("verdict", [WORKS, FAILS])
def test_a_verdict_is_kept(tmp_path, verdict):
    assert accelerator.remembered(tmp_path, FACTS) is None
    accelerator.remember(tmp_path, FACTS, verdict)
    assert accelerator.remembered(tmp_path, FACTS) == verdict
    assert [path.name for path in tmp_path.iterdir()] == ["accelerator.json"]
    assert str(tmp_path / "accelerator.json") in accelerator.how_to_try_again(tmp_path)


@pytest.mark.parametrize("changed", ["kernel", "qemu", "host_kernel", "host_boot"])
def test_a_verdict_holds_for_what_it_was_come_to_on(tmp_path, changed):
    accelerator.remember(tmp_path, FACTS, WORKS)
    assert accelerator.remembered(tmp_path, replace(FACTS, **{changed: "another"})) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"form": 0, "finding": "works", "why": "", "facts": {}}', b"\xff"],
)
def test_what_cannot_be_read_is_no_verdict(tmp_path, content):
    (tmp_path / "accelerator.json").write_bytes(content)
    assert accelerator.remembered(tmp_path, FACTS) is None
    accelerator.remember(tmp_path, FACTS, FAILS)
    assert accelerator.remembered(tmp_path, FACTS) == FAILS


def test_a_verdict_that_cannot_be_kept_is_no_fault(tmp_path):
    accelerator.remember(tmp_path / "nowhere", FACTS, WORKS)
    assert accelerator.remembered(tmp_path / "nowhere", FACTS) is None


def test_what_a_look_at_the_device_tells(tmp_path):
    (tmp_path / "file").touch()
    missing = accelerator.seen_without_trying(tmp_path / "kvm")
    assert missing == Verdict(Finding.FAILS, f"there is no {tmp_path}/kvm")
    file = accelerator.seen_without_trying(tmp_path / "file")
    assert file is not None
    assert "no device" in file.why
    assert accelerator.seen_without_trying(Path("/dev/null")) is None
