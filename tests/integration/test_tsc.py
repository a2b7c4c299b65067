"""The frequency of this host's time stamp counter."""

import json
import platform

import pytest

from magsd.engine.tsc import tsc_khz
from magsd.engine.vm_host import PROGRAMS
from magsd.model.errors import LaunchError

PROGRAM = PROGRAMS / "mags-tsc"
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86_64 alone has one")


async def test_it_is_measured_once_a_boot(tmp_path):
    khz = await tsc_khz(PROGRAM, tmp_path)
    assert 500_000 < khz < 10_000_000
    assert await tsc_khz(tmp_path / "no program", tmp_path) == khz


async def test_what_hardly_differs_is_the_same(tmp_path):
    khz = await tsc_khz(PROGRAM, tmp_path)
    for other, is_kept in ((khz + khz // 5000, True), (khz + khz // 100, False)):
        (tmp_path / "tsc.json").write_text(json.dumps({"boot_id": "another", "khz": other}))
        assert (await tsc_khz(PROGRAM, tmp_path) == other) is is_kept


@pytest.mark.parametrize("content", ["", "[]", '{"boot_id": 1}', '{"boot_id": "x", "khz": "y"}'])
async def test_what_cannot_be_read_is_measured_anew(tmp_path, content):
    (tmp_path / "tsc.json").write_text(content)
    assert await tsc_khz(PROGRAM, tmp_path) > 500_000


async def test_a_program_that_is_missing_is_named(tmp_path):
    with pytest.raises(LaunchError, match="make setup"):
        await tsc_khz(tmp_path / "nowhere", tmp_path)
