"""Ids and names."""

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.model import names
from magsd.model.errors import InvalidError


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (names.new_account_id, r"acc_[0-9a-f]{16}"),
        (names.new_token_id, r"tok_[0-9a-f]{16}"),
        (names.new_run_id, r"run_[0-9a-f]{16}"),
        (names.new_vm_id, r"[0-9a-f]{8}"),
        (names.new_subdomain, r"[0-9a-f]{12}"),
    ],
)
def test_ids_have_their_form_and_differ(make, form):
    made = {make() for _ in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch(form, each) for each in made)


def test_ids_are_told_apart():
    assert names.is_request_id(names.new_request_id())
    assert names.is_vm_id(names.new_vm_id())
    assert not names.is_request_id(names.new_vm_id())
    assert not names.is_vm_id("0BADCAFE")


@given(st.text())
def test_no_text_but_an_id_is_taken_for_one(text):
    assert names.is_request_id(text) == bool(
        re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)
        and text[14] == "4"
        and text[19] in "89ab"
    )


request_ids = st.uuids(version=4).map(str)
vm_ids = st.binary(min_size=4, max_size=4).map(bytes.hex)
intruders = st.one_of(
    st.sampled_from(["\n", " ", "\0", "-", "g", "A", "\uff10", "\u0661", "\u00b2"]),
    st.characters().filter(lambda letter: letter not in "0123456789abcdef"),
)


@given(request_ids)
def test_every_uuid_of_version_four_is_an_id(text):
    assert names.is_request_id(text)
    assert str(uuid.UUID(text)) == text


@given(vm_ids)
def test_every_eight_digits_are_a_vm(text):
    assert names.is_vm_id(text)
    assert not names.is_request_id(text)


@given(st.one_of(request_ids, vm_ids), intruders, st.data())
def test_a_letter_more_or_another_letter_makes_no_id(text, intruder, data):
    """Digits of other scripts, capital letters and a newline at the end among them."""
    at = data.draw(st.integers(0, len(text)))
    changed = [text[:at] + intruder + text[at:]]
    if at < len(text) and text[at] != intruder:
        changed.append(text[:at] + intruder + text[at + 1 :])
    changed.append(text[:-1])
    for near in changed:
        assert not names.is_vm_id(near)
        assert not names.is_request_id(near)


@given(st.text(st.characters(), max_size=140))
def test_exactly_what_can_be_shown_in_bounds_names_a_job(name):
    """A surrogate is not printable, so nothing that a database cannot keep passes."""
    is_good = 1 <= len(name) <= names.JOB_NAME_MAX and name.isprintable()
    if is_good:
        names.check_job_name(name)
    else:
        with pytest.raises(InvalidError, match="name"):
            names.check_job_name(name)


@given(st.sampled_from("x\u00e9\u0416\u4e2d\U0001f600"), st.integers(0, 300))
def test_a_names_length_is_counted_in_characters(letter, length):
    if 1 <= length <= names.JOB_NAME_MAX:
        names.check_job_name(letter * length)
    else:
        with pytest.raises(InvalidError, match="1 to 128"):
            names.check_job_name(letter * length)


@given(st.text(max_size=200))
def test_a_job_name_that_is_accepted_can_be_stored_and_shown(name):
    try:
        names.check_job_name(name)
    except InvalidError:
        return
    assert 1 <= len(name) <= 128
    assert name.encode().decode().isprintable()


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "a\0", "\ud800"])
def test_a_job_name_that_cannot_be_is_refused(name):
    with pytest.raises(InvalidError, match="name"):
        names.check_job_name(name)
