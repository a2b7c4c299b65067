"""What a job may ask for: defaults, bounds, and text that cannot travel."""

import contextlib
import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.model.errors import InvalidError, TooLargeError
from magsd.model.quota import ENVIRONMENT_MAX_BYTES, SCRIPT_MAX_BYTES, Limits, completed
from magsd.model.records import JobSpec

LIMITS = Limits(
    default_timeout_s=50, max_timeout_s=100, max_vcpus=2, max_memory_mb=1024, max_disk_gb=4
)
BOUNDS = {
    "timeout_s": (1, 100),
    "vcpus": (1, 2),
    "memory_mb": (64, 1024),
    "disk_gb": (1, 4),
}


def test_what_is_not_asked_for_is_the_operators_default():
    spec = completed(JobSpec("true", ignored=("x",)), Limits())
    got = (spec.timeout_s, spec.vcpus, spec.memory_mb, spec.disk_gb, spec.rootfs_type)
    assert got == (300, 1, 512, 2, "standard")
    assert spec.ignored == ("x",)


@given(st.sampled_from(sorted(BOUNDS)), st.integers(-(2**70), 2**70))
def test_a_number_is_taken_as_it_is_or_refused_by_name(field, number):
    least, most = BOUNDS[field]
    if least <= number <= most:
        assert getattr(completed(JobSpec("true", **{field: number}), LIMITS), field) == number
    else:
        with pytest.raises(InvalidError, match=f"between {least} and {most}"):
            completed(JobSpec("true", **{field: number}), LIMITS)


@given(st.dictionaries(st.text(), st.text()), st.text())
def test_what_is_accepted_can_be_encoded(environment, script):
    try:
        spec = completed(JobSpec(script, environment=environment), LIMITS)
    except InvalidError:
        return
    assert spec.script.encode() == script.encode()
    assert spec.script.strip()
    for name, value in spec.environment.items():
        assert name
        assert "=" not in name
        assert b"\0" not in f"{name}={value}".encode()


bounded = st.one_of(st.none(), st.integers(-1, 1100))
asked = st.builds(
    JobSpec,
    script=st.sampled_from(["true", " x ", "\u00e9", ""]),
    environment=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
    timeout_s=bounded,
    vcpus=bounded,
    memory_mb=bounded,
    disk_gb=bounded,
    rootfs_type=st.sampled_from(["standard", "other"]),
    ignored=st.lists(st.text(max_size=3), max_size=2).map(tuple),
)


@given(asked)
def test_what_is_completed_lies_within_bounds_and_stays_what_it_is(spec):
    try:
        got = completed(spec, LIMITS)
    except InvalidError:
        return
    for name, (least, most) in BOUNDS.items():
        number = getattr(got, name)
        wanted = getattr(spec, name)
        assert wanted in (None, number)
        assert least <= number <= most
    again = {field.name: getattr(got, field.name) for field in dataclasses.fields(got)}
    assert again.pop("files") == ()  # It is for the core to know them.
    assert completed(JobSpec(**again), LIMITS) == got


@given(asked)
def test_a_refusal_names_a_field_that_was_asked_for(spec):
    """Whoever asks for nothing special is never told about bounds."""
    try:
        completed(spec, LIMITS)
    except InvalidError as error:
        field = re.split(r"[ :]", error.message)[0]
        attribute = {"timeout": "timeout_s"}.get(field, field)
        assert getattr(spec, attribute) not in (None, {})


@given(asked, st.text(st.characters(), max_size=4))
def test_text_that_cannot_travel_is_an_invalid_error_and_nothing_else(spec, text):
    for changed in (
        dataclasses.replace(spec, script=text),
        dataclasses.replace(spec, environment={text: text}),
    ):
        with contextlib.suppress(InvalidError):
            got = completed(changed, LIMITS)
            got.script.encode()
            "".join([*got.environment, *got.environment.values()]).encode()


@pytest.mark.parametrize("script", ["", " \n\t", "echo \0", "echo \ud800"])
def test_a_script_that_cannot_run_is_refused(script):
    with pytest.raises(InvalidError, match="script"):
        completed(JobSpec(script), LIMITS)


def test_sizes_are_counted_in_bytes():
    assert completed(JobSpec("é" * (SCRIPT_MAX_BYTES // 2)), LIMITS)
    with pytest.raises(TooLargeError):
        completed(JobSpec("é" * (SCRIPT_MAX_BYTES // 2) + "x"), LIMITS)
    fits = "é" * ((ENVIRONMENT_MAX_BYTES - 3) // 2)
    assert completed(JobSpec("true", environment={"A": fits}), LIMITS)
    with pytest.raises(InvalidError, match="environment"):
        completed(JobSpec("true", environment={"A": fits + "xx"}), LIMITS)


@pytest.mark.parametrize("name", ["", "A=B", "A\0", "\ud800"])
def test_a_variable_that_cannot_be_named_is_refused(name):
    with pytest.raises(InvalidError, match="environment"):
        completed(JobSpec("true", environment={name: "1"}), LIMITS)
