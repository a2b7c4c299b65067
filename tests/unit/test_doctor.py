"""What `magsd doctor` concludes from what it sees."""

import pytest

from magsd import doctor
from magsd.config import Settings
from magsd.doctor import Check, Verdict

LISTING = """
table ip filter {
	chain INPUT {
		type filter hook input priority filter; policy drop;
	}
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
table inet mags_0a1b {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table inet fine {
	chain forward {
		type filter hook forward priority filter; policy accept;
	}
}
"""


def test_foreign_chains_that_drop_are_named():
    assert doctor.dropping_chains(LISTING) == ["ip filter FORWARD"]
    assert doctor.dropping_chains("") == []


def test_a_line_for_people():
    check = Check("data", Verdict.WARN, "two\nlines", "do this")
    assert check.line() == "warn  data       two lines; do this"


def test_the_room_is_that_of_the_nearest_directory_there_is(tmp_path):
    assert "GB free" in doctor.space(tmp_path / "not" / "yet").seen


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


async def test_a_missing_image_fails_with_the_next_step(settings):
    check = await doctor.image(settings)
    assert check.verdict is Verdict.FAIL
    assert "magsd image build standard" in check.seen


async def test_no_sandbox_is_tried_without_an_image(settings):
    checks = [check async for check in doctor.diagnose(settings, lambda: None)]
    assert (checks[-1].what, checks[-1].seen) == ("sandbox", "not tried")
