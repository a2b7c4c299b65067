"""Where a journal lies, and its one way from one place to the other."""

import pytest

from magsd.core.log_places import LogPlaces
from magsd.model.names import RequestId, VmId

JOB, VM = RequestId("job"), VmId("0123abcd")


@pytest.fixture
def places(tmp_path):
    return LogPlaces(tmp_path)


def fill(directory) -> None:
    for name in ("journal.head", "journal.0", "state", "record.json", "mags-shim"):
        (directory / name).write_text(name)
    (directory / "bundle").mkdir()
    (directory / "bundle/config.json").write_text("{}")


def test_what_is_kept_moves_and_the_rest_goes(places):
    directory = places.make_run_directory(VM)
    assert directory.stat().st_mode & 0o777 == 0o700
    fill(directory)
    assert places.find(JOB, 1, VM) == directory
    assert places.size_bytes(VM) == len("journal.headjournal.0staterecord.json")
    for _ in range(2):
        places.put_away(JOB, 1, VM)
        assert not directory.exists()
        assert places.find(JOB, 1, VM) == places.archive(JOB, 1)
    kept = sorted(path.name for path in places.archive(JOB, 1).iterdir())
    assert kept == ["journal.0", "journal.head", "record.json", "state"]
    assert places.size_bytes(VM) == 0


def test_each_life_has_a_place_of_its_own(places):
    for epoch, vm in ((1, VM), (2, VmId("00000002"))):
        fill(places.make_run_directory(vm))
        places.put_away(JOB, epoch, vm)
    assert places.find(JOB, 1, None) != places.find(JOB, 2, None)
    assert places.find(JOB, 3, None) is None


def test_what_nobody_knows_can_be_listed_and_removed(places):
    assert places.vms() == []
    fill(places.make_run_directory(VM))
    assert places.vms() == [VM]
    places.remove(VM)
    places.remove(VM)
    assert places.vms() == []
