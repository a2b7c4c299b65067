"""The data directory, and what an operator is told."""

import os
import socket
import stat

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from magsd import app
from magsd.config import Settings
from magsd.db import driver
from magsd.model.errors import ConflictError, InvalidError


def test_the_layout_of_a_data_directory(tmp_path):
    path = tmp_path / "new" / "data"
    with app.data_directory(path):
        for name in ("run", "logs", "disks", "tmp"):
            assert stat.S_IMODE((path / name).stat().st_mode) == 0o700
        assert stat.S_IMODE((path / "mags.db").stat().st_mode) == 0o600
        assert (path / "lock").read_text() == f"{os.getpid()}\n"


def test_what_is_temporary_does_not_outlive_a_start(tmp_path):
    with app.data_directory(tmp_path):
        (tmp_path / "tmp/folder").mkdir()
        (tmp_path / "tmp/folder/file").touch()
        (tmp_path / "tmp/link").symlink_to(tmp_path / "logs")
        (tmp_path / "logs/kept").touch()
    with app.data_directory(tmp_path):
        assert list((tmp_path / "tmp").iterdir()) == []
        assert (tmp_path / "logs/kept").exists()


def test_a_directory_has_one_daemon(tmp_path):
    with app.data_directory(tmp_path):
        with pytest.raises(ConflictError) as refused, app.data_directory(tmp_path):
            pass
        assert str(tmp_path) in refused.value.message
        assert str(os.getpid()) in refused.value.message
    with app.data_directory(tmp_path):
        pass


def test_a_directory_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidError, match="cannot be used"), app.data_directory(tmp_path / "file"):
        pass


def test_migrate_makes_a_database(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    app.migrate(settings)
    app.migrate(settings)
    assert (tmp_path / "data/mags.db").stat().st_size > 0


def test_systemd_is_told_where_it_asked(tmp_path, monkeypatch):
    app.notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        app.notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_the_newest_migration_is_the_head():
    config = Config()
    config.set_main_option("script_location", str(driver._MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [driver.newest_revision()]
