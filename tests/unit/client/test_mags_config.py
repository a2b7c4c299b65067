"""Where server and token come from, and how they are kept."""

import stat

import pytest

from mags import MagsError, config
from mags.config import Configuration


def test_the_default_is_this_machine_and_no_token():
    assert config.load() == Configuration("http://127.0.0.1:7070", None)


def test_an_argument_wins_over_the_environment_and_that_over_the_file(monkeypatch):
    config.save(Configuration("http://file", "from-file"))
    assert config.load() == Configuration("http://file", "from-file")

    monkeypatch.setenv("MAGS_API_URL", "http://environment/")
    monkeypatch.setenv("MAGS_TOKEN", "second")
    assert config.load() == Configuration("http://environment", "second")

    monkeypatch.setenv("MAGS_API_TOKEN", "first")
    assert config.load().api_token == "first"
    assert config.load("https://given", "given") == Configuration("https://given", "given")


def test_what_is_saved_is_for_its_owner_alone(home):
    path = config.save(Configuration("http://a", "secret"))

    assert path == home / ".mags/config.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(home, content):
    (home / ".mags").mkdir()
    (home / ".mags/config.json").write_text(content)

    with pytest.raises(MagsError, match="mags login"):
        config.load()


def test_forgetting_twice_is_no_error():
    path = config.save(Configuration("http://a", "secret"))

    assert config.forget() == path
    assert config.forget() is None


def test_a_home_that_is_not_writable_is_an_error_that_names_the_file(home):
    (home / ".mags").write_text("a file where the folder should be")

    with pytest.raises(MagsError, match=r"cannot save .*config.json"):
        config.save(Configuration("http://a", "secret"))


@pytest.mark.parametrize("address", ["localhost:7070", "ftp://x", "/run/x"])
def test_an_address_without_a_scheme_is_refused(address):
    with pytest.raises(MagsError, match="begin with http"):
        config.load(address)
