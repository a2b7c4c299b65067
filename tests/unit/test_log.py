"""The form of the daemon's log."""

import errno
import io
import json
import logging
import sys

import pytest
import structlog

from magsd import log


@pytest.fixture
def out():
    """What a configured log has written; the configuration is put back."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    levels = root.level, logging.getLogger("magsd").level
    hooks = sys.excepthook
    stream = io.StringIO()
    yield stream
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = before
    root.setLevel(levels[0])
    logging.getLogger("magsd").setLevel(levels[1])
    sys.excepthook = hooks


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_line_has_event_level_and_time(out):
    log.configure("info", stream=out, json=True)
    structlog.get_logger().info("launched", vm="0a1b2c3d")
    structlog.get_logger().debug("not_wanted")
    logging.getLogger("uvicorn.error").warning("a library's %s", "word")
    logging.getLogger("uvicorn.error").info("not wanted")
    logging.getLogger("magsd.api.errors").info("refused: %s", "why")
    found = lines(out)
    assert [line["event"] for line in found] == ["launched", "a library's word", "refused: why"]
    assert [line["level"] for line in found] == ["info", "warning", "info"]
    assert all(line["timestamp"].endswith("Z") for line in found)
    assert found[0]["vm"] == "0a1b2c3d"


def test_what_is_bound_to_the_context_is_in_every_line(out):
    log.configure("info", stream=out, json=True)
    with structlog.contextvars.bound_contextvars(account="default"):
        structlog.get_logger().info("ours")
        logging.getLogger("uvicorn").error("theirs")
    structlog.get_logger().info("later")
    assert [line.get("account") for line in lines(out)] == ["default", "default", None]


def test_a_traceback_is_one_line_and_shows_no_variables(out):
    log.configure("info", stream=out, json=True)
    token = "mags_" + "secret_of_somebody"
    try:
        raise ValueError(len(token))
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(out)
    assert "ValueError: 23" in line["exception"]
    assert token not in out.getvalue()


def test_a_crash_is_a_line_too(out, monkeypatch):
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    monkeypatch.setattr("threading.excepthook", None)
    log.configure("info", stream=out, json=True)
    log.catch_all()
    error = RuntimeError("nobody caught it")
    sys.excepthook(RuntimeError, error, None)
    (line,) = lines(out)
    assert (line["event"], line["level"]) == ("crashed", "critical")
    assert "nobody caught it" in line["exception"]


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        log.configure("loud")


class Full(io.StringIO):
    """A stream to a disk without room."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_fails_nobody(out, capsys):
    log.configure(stream=Full(), json=True)
    structlog.get_logger().warning("lost", why="the disk is full")
    logging.getLogger("magsd").warning("lost too")
    assert capsys.readouterr().err == ""
