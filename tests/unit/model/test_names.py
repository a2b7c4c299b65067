"""Ids and names."""

import re

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
