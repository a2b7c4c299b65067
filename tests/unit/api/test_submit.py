"""What the body of a submit means, without a server."""

import dataclasses
import json

import pytest

from magsd.api.submit import spec_of
from magsd.model.errors import InvalidError, TooLargeError


def asked(**fields):
    """Return the `JobSpec` for a body, as it comes out of JSON."""
    return spec_of(json.loads(json.dumps({"script": "echo hi", **fields})))


def test_the_least():
    spec = asked()
    assert (spec.script, spec.name, spec.rootfs_type) == ("echo hi", None, "standard")


def test_everything():
    spec = asked(
        type="inline",
        name="mine",
        environment={"A": "1"},
        rootfs_type="alpine",
        timeout=5,
        vcpus=2,
        memory_mb=256.0,
        disk_gb=3,
        engine="gvisor",
        workspace_id="mine",
        base_workspace_id="theirs",
        no_sync=True,
        file_ids=["file_1"],
        persistent=True,
        no_sleep=True,
        idle_timeout=60,
        startup_command="true",
    )
    assert dataclasses.asdict(spec) == {
        "script": "echo hi",
        "name": "mine",
        "environment": {"A": "1"},
        "timeout_s": 5,
        "rootfs_type": "alpine",
        "vcpus": 2,
        "memory_mb": 256,
        "disk_gb": 3,
        "engine": "gvisor",
        "workspace_id": "mine",
        "base_workspace_id": "theirs",
        "no_sync": True,
        "file_ids": ("file_1",),
        "persistent": True,
        "no_sleep": True,
        "idle_timeout_s": 60,
        "startup_command": "true",
        "ignored": (),
    }


def test_what_asks_for_nothing_is_accepted():
    spec = asked(
        persistent=False,
        no_sleep=False,
        no_sync=None,
        workspace_id=None,
        base_workspace_id="",
        startup_command="",
        file_ids=[],
        idle_timeout=None,
        reset=False,
        name=None,
        environment={"__MAGS_KEEP_ALIVE": "false", "__MAGS_IDLE_MIN": ""},
    )
    assert spec == asked()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reset", True),
    ],
)
def test_what_is_not_built_is_refused(name, value):
    with pytest.raises(InvalidError, match=f"^{name} is not supported by this version"):
        asked(**{name: value})


def test_only_what_stays_may_be_kept_from_sleep():
    assert asked(persistent=True, environment={"__MAGS_KEEP_ALIVE": "true"}).no_sleep
    assert not asked(persistent=True, no_sleep=False).no_sleep
    for fields in ({"no_sleep": True}, {"environment": {"__MAGS_KEEP_ALIVE": "true"}}):
        with pytest.raises(InvalidError, match="no_sleep needs persistent"):
            asked(**fields)
    with pytest.raises(InvalidError, match="__MAGS_KEEP_ALIVE must be true or false"):
        asked(persistent=True, environment={"__MAGS_KEEP_ALIVE": "yes"})


def test_the_idle_time_is_in_seconds_and_in_minutes():
    assert asked(persistent=True, idle_timeout=90).idle_timeout_s == 90
    assert asked(persistent=True, environment={"__MAGS_IDLE_MIN": "5"}).idle_timeout_s == 300
    with pytest.raises(InvalidError, match="idle_timeout and its reserved key"):
        asked(persistent=True, idle_timeout=90, environment={"__MAGS_IDLE_MIN": "5"})


def test_unknown_fields_are_ignored_and_kept_fit_to_be_told():
    assert asked(ephemeral=True, **{"x\n": 1, "y" * 99: 1}).ignored == ("ephemeral", "x?", "y" * 64)


def test_reserved_keys_are_settings():
    environment = {"__MAGS_ROOTFS_TYPE": "alpine", "__MAGS_MEM_GB": "2", "A": "1"}
    spec = asked(environment=environment)
    assert (spec.rootfs_type, spec.memory_mb, spec.environment) == ("alpine", 2048, {"A": "1"})


@pytest.mark.parametrize("script", ["x" * (10 << 20), "x" * ((1 << 20) + 1), "ä" * (600 << 10)])
def test_a_script_that_is_too_large(script):
    with pytest.raises(TooLargeError):
        asked(script=script)


def test_the_largest_script():
    assert len(asked(script="x" * (1 << 20)).script) == 1 << 20
