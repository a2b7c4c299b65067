"""Fixtures of the client's tests."""

import sys

import pytest

from mags import Mags
from mags.cli import main as cli
from tests.unit.client.local_api import serving


@pytest.fixture
def api():
    """An API whose answers the test lays down."""
    with serving() as api:
        yield api


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Keep the developer's own settings out of every test."""
    for name in ("MAGS_API_TOKEN", "MAGS_TOKEN", "MAGS_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def environment(api, monkeypatch):
    """Where the command finds that API."""
    monkeypatch.setenv("MAGS_API_URL", api.url)
    monkeypatch.setenv("MAGS_API_TOKEN", "secret")


@pytest.fixture
def run(environment, monkeypatch, capfdbinary):
    """The command, inside this process; what it prints is bytes."""

    def run(*arguments):
        """Return exit code, stdout and stderr of a command."""
        monkeypatch.setattr(sys, "argv", ["mags", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capfdbinary.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def mags(api):
    """A client of that API."""
    with Mags("secret", api.url) as mags:
        yield mags
