"""The command line of `magsd`, as far as it needs no daemon."""

import json

import pytest
from typer.testing import CliRunner

from magsd import __version__
from magsd.cli import app


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGSD_DATA_DIR", str(tmp_path))


def run(*words):
    return CliRunner().invoke(app, words)


def test_the_version():
    assert run("version").stdout == f"magsd {__version__}\n"


def test_the_document():
    assert json.loads(run("openapi").stdout)["info"]["version"] == __version__


def test_a_wrong_setting_is_one_line(monkeypatch):
    monkeypatch.setenv("MAGSD_POOLMIN", "1")
    for command in (["serve"], ["doctor"], ["migrate"], ["image", "list"]):
        done = run(*command)
        assert done.exit_code == 1
        assert done.stderr.startswith("magsd: settings: there is no setting 'MAGSD_POOLMIN'")
        assert done.stderr.count("\n") == 1


def test_no_images_yet():
    done = run("image", "list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "magsd image build" in done.stderr


def test_no_kernel_yet():
    done = run("kernel", "show")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "magsd kernel install" in done.stderr


def test_an_image_without_recipe():
    done = run("image", "build", "windows")
    assert done.exit_code == 1
    assert "windows" in done.stderr


def test_a_wrong_command_is_wrong_usage():
    assert run("server").exit_code == 2
