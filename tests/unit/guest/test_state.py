"""The state file says how a VM and its streams ended, and never more than is in it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.guest.state import EndCode, StreamState, VmState, read_state, read_stream

numbers = st.integers(0, 2**64 - 1)


def header(end=0, engine_status=0, ended_ns=0, detail=b""):
    head = b"MAGSSTA1" + struct.pack("<IIQ", end, engine_status, ended_ns)
    return (head + detail).ljust(4096, b"\0")


def entry(state, status=0, timed_out=0, opened=0, ended=0, out=0, err=0):
    return struct.pack("<IIIIQQQQ", state, status, timed_out, 0, opened, ended, out, err).ljust(
        64, b"\0"
    )


def write(directory, head, entries=()):
    (directory / "state").write_bytes(head + entry(0) + b"".join(entries))


def test_no_file_is_nothing(tmp_path):
    assert read_state(tmp_path) is None
    assert read_stream(tmp_path, 1) is None
    assert read_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("code", EndCode)
def test_every_end(tmp_path, code):
    write(tmp_path, header(code, 137, 2**63, b"the engine said \xff"))
    assert read_state(tmp_path) == VmState(code, 137, 2**63, "the engine said \ufffd")


def test_detail_as_long_as_its_place(tmp_path):
    write(tmp_path, header(1, detail=b"d" * 2048 + b"not detail"))
    assert read_state(tmp_path).detail == "d" * 2048


def test_an_end_that_is_not_known_is_none(tmp_path):
    write(tmp_path, header(99))
    assert read_state(tmp_path) is None


def test_streams(tmp_path):
    write(tmp_path, header(), [entry(1, opened=5), entry(2, 9, 1, 5, 6, 7, 8), entry(0)])
    assert read_stream(tmp_path, 1) == StreamState(1, is_over=False, opened_ns=5)
    assert read_stream(tmp_path, 2) == StreamState(2, True, 9, True, 5, 6, 7, 8)
    assert read_stream(tmp_path, 3) is None
    assert read_stream(tmp_path, 0x7FFF) is None


@given(numbers.map(lambda number: number & 0xFFFFFFFF))
def test_a_wait_status_is_one_whatever_the_guest_said(tmp_path_factory, status):
    directory = tmp_path_factory.mktemp("state")
    write(directory, header(), [entry(2, status)])
    assert read_stream(directory, 1).wait_status == status & 0xFFFF


@given(st.binary(max_size=5000), st.booleans(), st.integers(0, 0x7FFF))
def test_garbage_raises_nothing(tmp_path_factory, content, has_magic, stream):
    directory = tmp_path_factory.mktemp("state")
    (directory / "state").write_bytes((b"MAGSSTA1" if has_magic else b"") + content)
    read_state(directory)
    read_stream(directory, stream)
