"""Settings: where they come from, and what is refused."""

import os

import pytest

from magsd import config
from magsd.config import Bind
from magsd.model.errors import InvalidError


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(config.PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")


@pytest.fixture
def file(monkeypatch, tmp_path):
    path = tmp_path / "magsd.toml"
    monkeypatch.setenv("MAGSD_CONFIG", str(path))
    return path


def test_defaults():
    settings = config.load()
    assert settings.api_bind == Bind("127.0.0.1", 7070)
    assert settings.effective_database_url == "sqlite:////var/lib/mags/mags.db"
    core = settings.core("gvisor")
    assert (core.default_engine, core.limits.default_timeout_s) == ("gvisor", 300)
    assert core.url_of("abc") == "http://abc.apps.localhost:7071"


def test_the_environment_wins_over_the_file(file, monkeypatch):
    file.write_text('pids_limit = 100\nmax_vcpus = 3\napi_bind = "[::1]:80"\n')
    monkeypatch.setenv("MAGSD_PIDS_LIMIT", "200")
    settings = config.load()
    assert (settings.pids_limit, settings.max_vcpus) == (200, 3)
    assert settings.api_bind == Bind("::1", 80)
    assert str(settings.api_bind) == "[::1]:80"
    assert settings.core("gvisor").limits.max_vcpus == 3


def test_lists_are_written_with_commas_or_as_lists(file, monkeypatch):
    file.write_text('egress_allow = ["10.1.0.0/16"]\n')
    assert config.load().egress_allow == ("10.1.0.0/16",)
    monkeypatch.setenv("MAGSD_EGRESS_ALLOW", "10.2.0.0/16, 10.3.0.1:443")
    assert config.load().network().egress_allow == ("10.2.0.0/16", "10.3.0.1:443")


def test_no_more_vms_than_there_are_slots_for(monkeypatch):
    settings = config.load().core("gvisor")
    assert (settings.capacity.vms, settings.pool_total_max) == (256, 32)
    monkeypatch.setenv("MAGSD_SLOT_NET", "10.9.0.0/26")
    settings = config.load().core("gvisor")
    assert (settings.capacity.vms, settings.pool_total_max) == (5, 8)
    monkeypatch.setenv("MAGSD_POOL_MIN", "0")
    monkeypatch.setenv("MAGSD_POOL_MAX", "0")
    settings = config.load().core("gvisor")
    assert (settings.capacity.vms, settings.pool_total_max) == (13, 0)


def test_what_the_machine_has_is_multiplied_as_the_operator_says(monkeypatch):
    usual = config.load().core("gvisor").capacity
    for name in ("CPU", "MEMORY", "DISK"):
        default = getattr(config.load(), f"{name.lower()}_overcommit")
        monkeypatch.setenv(f"MAGSD_{name}_OVERCOMMIT", str(default * 2))
    twice = config.load().core("gvisor").capacity
    assert twice.vcpus == usual.vcpus * 2
    assert abs(twice.memory_mb - usual.memory_mb * 2) <= 1
    assert abs(twice.disk_gb - usual.disk_gb * 2) <= 1


def test_the_pool_is_never_to_be_larger_than_it_may_be(monkeypatch):
    monkeypatch.setenv("MAGSD_POOL_MIN", "3")
    monkeypatch.setenv("MAGSD_POOL_MAX", "2")
    with pytest.raises(InvalidError, match="pool_min"):
        config.load()


def test_each_part_gets_its_settings(monkeypatch):
    monkeypatch.setenv("MAGSD_DATA_DIR", "/srv/mags")
    monkeypatch.setenv("MAGSD_VM_UID_BASE", "3000000")
    monkeypatch.setenv("MAGSD_DEFAULT_DISK_GB", "3")
    monkeypatch.setenv("MAGSD_LAUNCHES_AT_ONCE", "7")
    settings = config.load()
    assert settings.vm_host().vm_uid_base == 3000000
    assert settings.vm_host().spare_disk_gb == 3
    assert settings.vm_host().instance == settings.network().instance
    assert settings.network().run_directory == settings.data_dir / "run"
    assert settings.core("gvisor").launches_at_once == 7


def test_empty_variables_say_nothing(monkeypatch):
    monkeypatch.setenv("MAGSD_TOKEN", "")
    monkeypatch.setenv("MAGSD_CONFIG", "")
    assert config.load().token is None


def test_the_schemes_own_port(monkeypatch):
    monkeypatch.setenv("MAGSD_APPS_PORT", "0")
    monkeypatch.setenv("MAGSD_APPS_SCHEME", "https")
    monkeypatch.setenv("MAGSD_APPS_DOMAIN", "apps.example.org")
    assert config.load().core("gvisor").url_of("abc") == "https://abc.apps.example.org"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MAGSD_PIDS_LIMT", "5", "did you mean MAGSD_PIDS_LIMIT?"),
        ("MAGSD_pids_limit", "5", "MAGSD_pids_limit"),
        ("MAGSD_ZZZ", "5", "MAGSD_ZZZ"),
        ("MAGSD_PIDS_LIMIT", "many", "pids_limit must be an integer"),
        ("MAGSD_PIDS_LIMIT", "0", "pids_limit must be at least"),
        ("MAGSD_API_BIND", "7070", "HOST:PORT"),
        ("MAGSD_API_BIND", "localhost:99999", "HOST:PORT"),
        ("MAGSD_ENGINE", "docker", "engine"),
        ("MAGSD_DATA_DIR", "mags", "data_dir must be an absolute path"),
        ("MAGSD_MAX_TIMEOUT_S", "10", "default_timeout_s must not be above max_timeout_s"),
        ("MAGSD_MIN_MEMORY_MB", "1000", "default_memory_mb must not be below"),
        ("MAGSD_SLOT_NET", "home", "slot_net"),
        ("MAGSD_EGRESS_ALLOW", "10.0.0.1/8", "egress_allow"),
        ("MAGSD_LOG_LEVEL", "loud", "log_level"),
        ("MAGSD_CONFIG", "/nonexistent/magsd.toml", "cannot read /nonexistent/magsd.toml"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidError) as refused:
        config.load()
    assert told in refused.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pids_limt = 5", "did you mean pids_limit?"),
        ("[limits]\nvcpus = 1", "'limits'"),
        ('pids_limit = "x"', "pids_limit"),
        ("pids_limit", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused(file, text, told):
    file.write_text(text)
    with pytest.raises(InvalidError) as refused:
        config.load()
    assert told in refused.value.message


def test_the_token_is_not_shown(monkeypatch):
    monkeypatch.setenv("MAGSD_TOKEN", "a-very-secret-token")
    settings = config.load()
    assert settings.token.get_secret_value() == "a-very-secret-token"
    assert "secret-token" not in repr(settings)
