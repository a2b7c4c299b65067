"""Set-up: what is due, and what of a machine it understands."""

import subprocess

import debian_packages
import pytest
import run_tests
import setup


def test_work_is_due_until_its_results_are_there_and_its_inputs_are_the_same(tmp_path):
    stamp, result = tmp_path / "stamp", tmp_path / "result"

    def is_due(key):
        with setup.stamped(stamp, key, result) as due:
            result.touch()
        return due

    assert is_due("a")
    assert not is_due("a")
    assert is_due("b")
    result.unlink()
    assert is_due("b")


def test_work_that_failed_is_due_again(tmp_path):
    stamp, result = tmp_path / "stamp", tmp_path / "result"
    result.touch()

    with pytest.raises(ZeroDivisionError), setup.stamped(stamp, "a", result):
        raise ZeroDivisionError

    assert not stamp.exists()


def test_a_digest_follows_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "REPOSITORY", tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    first = setup.digest_of([one])
    one.rename(two)
    second = setup.digest_of([two])
    two.write_text("y")

    assert len({first, second, setup.digest_of([two])}) == 3


@pytest.mark.parametrize(
    ("version", "date"),
    [
        ("runsc version release-20240729.0\nspec: 1.1.0-rc.1\n", 20240729),
        ("runsc version 0.0~20221219.0-1\n", 20221219),
        ("something else", 0),
    ],
)
def test_the_date_of_a_release_of_runsc(version, date):
    assert debian_packages._release_date(version) == date


def test_every_suite_runs_in_the_gate_and_the_quick_ones_in_the_check():
    check = [suite.name for suite in run_tests.suites("check")]
    gate = [suite.name for suite in run_tests.suites("gate")]

    assert check == ["format", "lint", "types", "layers", "docs", "unit"]
    of_jobs = ["e2e", "e2e faults", "e2e states", "e2e cycles"]
    assert gate == [*check, "fuzz", "integration", "conformance", *of_jobs]
    assert [suite.name for suite in run_tests.suites("full")] == gate


def test_every_folder_of_tests_has_a_suite():
    folders = {path.parent.name for path in (run_tests.REPOSITORY / "tests").glob("*/__init__.py")}

    assert folders <= {suite.name for suite in run_tests.suites("gate")}


def test_no_server_is_made_by_an_installation(tmp_path):
    settings = tmp_path / "createcluster.conf"
    settings.write_text("#create_main_cluster = true\n")
    seen = []

    def fail() -> None:
        with debian_packages.without_cluster(settings):
            seen.append(settings.read_text().splitlines()[-1])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == ["create_main_cluster = false"]
    assert settings.read_text() == "#create_main_cluster = true\n"


def test_no_service_is_started_by_an_installation(tmp_path):
    policy = tmp_path / "policy-rc.d"
    with debian_packages.without_services(policy):
        assert subprocess.run([policy], check=False).returncode == 101
    assert not policy.exists()
    policy.write_text("of the operator")
    with debian_packages.without_services(policy):
        assert policy.read_text() == "of the operator"
    assert policy.exists()
