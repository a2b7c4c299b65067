"""How a VM's end is read from what its run directory holds."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from magsd.engine.base import EndReason
from magsd.engine.ends import read_end
from magsd.engine.record import VmRecord, boot_id
from magsd.guest.state import EndCode
from magsd.model.names import VmId

RECORD = VmRecord(
    vm=VmId("00c0ffee"),
    epoch=2,
    boot_id=boot_id(),
    shim_pid=4000,
    shim_start_time=12,
    engine="gvisor",
    engine_version="20240729.0",
    image="standard",
    layers=("a.sqfs", "b.sqfs"),
    memory_mb=512,
    slot=3,
    uid=2_000_003,
)


def write_state(directory: Path, end: EndCode, detail: str = "") -> None:
    header = struct.pack("<8sIIQ2048s", b"MAGSSTA1", end, 0, 1, detail.encode())
    (directory / "state").write_bytes(header.ljust(8192, b"\0"))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    assert VmRecord.read(tmp_path) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"vm": "00c0ffee"}', "null"])
def test_what_is_no_record_counts_as_none(tmp_path: Path, content: str) -> None:
    assert VmRecord.read(tmp_path) is None
    (tmp_path / "record.json").write_text(content)
    assert VmRecord.read(tmp_path) is None


@pytest.mark.parametrize("code", [code for code in EndCode if code])
def test_what_the_shim_wrote_counts(tmp_path: Path, code: EndCode) -> None:
    write_state(tmp_path, code, "seen")
    ended = read_end(tmp_path, replace(RECORD, boot_id="another", is_stopped=True))
    assert (ended.reason.name, ended.detail) == (code.name, "seen")


def test_a_killed_sandbox_is_no_dead_agent(tmp_path: Path) -> None:
    detail = "Will try waiting on the sandbox process instead.\nI1 Exiting with status: 9"
    write_state(tmp_path, EndCode.AGENT_DIED, detail)
    assert read_end(tmp_path, RECORD).reason is EndReason.ENGINE_DIED


def test_a_shim_that_wrote_nothing(tmp_path: Path) -> None:
    assert read_end(tmp_path, RECORD).reason is EndReason.SHIM_DIED
    assert read_end(tmp_path, None).reason is EndReason.SHIM_DIED
    write_state(tmp_path, EndCode.NONE)
    assert read_end(tmp_path, RECORD).reason is EndReason.SHIM_DIED
    assert read_end(tmp_path, replace(RECORD, boot_id="x")).reason is EndReason.HOST_RESTARTED
    assert read_end(tmp_path, replace(RECORD, is_stopped=True)).reason is EndReason.KILLED
