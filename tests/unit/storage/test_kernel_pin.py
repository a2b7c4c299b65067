"""Which kernel is taken, of those that mirrors offer."""

import itertools
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magsd.model.errors import MagsError
from magsd.storage import kernel_pin
from magsd.storage.kernel_pin import Offer, Pin

PIN = Pin("linux-image-cloud", "6.1", "6.1.100-1")
SHOWN = """\
Package: linux-image-cloud-amd64
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)

Package: linux-image-cloud-amd64
Version: 6.1.176-1
Depends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1), other
"""
ORDERED = ["6.1.9-1", "6.1.10-1~rc1", "6.1.10-1", "6.1.10-1+deb12u1", "6.1.10-2", "6.1.10-10"]


def test_offers_are_read():
    assert kernel_pin.parse_offers(SHOWN) == [
        Offer("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
        Offer("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1"),
    ]
    assert kernel_pin.parse_offers(SHOWN)[0].release == "6.1.0-56-cloud-amd64"
    assert kernel_pin.parse_offers("") == []


def test_the_newest_of_the_series_is_taken():
    offers = [Offer("a", version) for version in ("6.1.176-1", "6.1.192-2", "6.12.3-1")]
    assert kernel_pin.choose(offers, PIN) == Offer("a", "6.1.192-2")
    assert kernel_pin.choose([Offer("a", "6.1.99-1"), Offer("a", "6.10.100-1")], PIN) is None


def test_a_refusal_says_what_there_is():
    assert "linux-image-cloud" in kernel_pin.refusal([], PIN).message
    assert "6.1.99-1" in kernel_pin.refusal([Offer("a", "6.1.99-1")], PIN).message
    assert isinstance(kernel_pin.refusal([], PIN), MagsError)


def test_versions_are_ordered():
    for lower, higher in itertools.combinations(ORDERED, 2):
        assert kernel_pin.version_key(lower) < kernel_pin.version_key(higher)


@settings(deadline=None)
@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg orders versions, and is not here")
@given(
    *[st.from_regex(r"\A[0-9]{1,2}(\.[0-9]{1,2}){0,2}(-[0-9]{1,2}([+~][a-z]{1,2}[0-9]?)?)?\Z")] * 2
)
def test_versions_are_ordered_as_dpkg_does(first, second):
    mine = kernel_pin.version_key(first) < kernel_pin.version_key(second)
    command = ["dpkg", "--compare-versions", first, "lt", second]
    assert mine == (subprocess.run(command, check=False).returncode == 0)


def test_the_pin_is_rewritten(tmp_path):
    text = kernel_pin.PIN_FILE.read_text()
    file = tmp_path / "kernel.toml"
    file.write_text(kernel_pin.rewritten(text, "6.12.5-1"))
    assert Pin.read(file) == Pin(Pin.read().meta, "6.12", "6.12.5-1")
    assert file.read_text().count("\n") == text.count("\n")
