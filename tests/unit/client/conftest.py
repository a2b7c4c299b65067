"""Fixtures of the client's tests."""

import pytest

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
