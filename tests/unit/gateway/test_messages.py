"""What an edge may say, and what it may not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.gateway import messages
from magsd.gateway.messages import Answer, Connect, FindKey, FindUrl, Hello, Hold, Refusal, Release

CALLS = [
    Hello(version=1),
    FindUrl(id=1, host="a.apps.localhost"),
    FindKey(id=2, fingerprint="SHA256:x"),
    Hold(id=3, request_id="an-id"),
    Connect(id=4, lease=3),
    Release(lease=3),
]


@pytest.mark.parametrize("call", CALLS)
def test_calls_arrive_as_they_were(call):
    assert messages.decode_call(messages.encode_call(call)) == call


@pytest.mark.parametrize(
    "answer",
    [
        Answer(id=1),
        Answer(id=2, request_id="an-id", port=80),
        Answer(id=3, request_id="an-id", environment={"A": "é\0\ud7ff", "B": "\n" * 50}),
        Answer(id=4, vm="0123abcd", epoch=2),
        Answer(id=5, has_socket=True),
        Answer(id=6, refusal=Refusal(code="capacity", message="later")),
    ],
)
def test_answers_arrive_as_they_were(answer):
    assert messages.decode_answer(messages.encode(answer)) == answer


@pytest.mark.parametrize(
    "said",
    [
        {},
        [],
        {"call": "kill"},
        {"call": "hello"},
        {"call": "hello", "version": "1"},
        {"call": "find_url", "id": 1},
        {"call": "find_url", "id": 1, "host": 5},
        {"call": "find_url", "id": 1, "host": "x" * 254},
        {"call": "find_url", "id": 0, "host": "x"},
        {"call": "find_url", "id": -1, "host": "x"},
        {"call": "find_url", "id": 1.5, "host": "x"},
        {"call": "find_url", "id": True, "host": "x"},
        {"call": "find_url", "id": 2**53, "host": "x"},
        {"call": "find_url", "id": 1, "host": "x", "also": "this"},
        {"call": "find_key", "id": 1, "fingerprint": "x" * 65},
        {"call": "hold", "id": 1, "request_id": "x" * 37},
        {"call": "connect", "id": 1, "lease": None},
        {"call": "release", "lease": "1"},
    ],
)
def test_anything_else_is_none(said):
    with pytest.raises(ValueError, match="no message"):
        messages.decode_call(json.dumps(said).encode())


@given(st.binary(max_size=200))
def test_garbage_is_none_and_is_not_repeated(data):
    with pytest.raises(ValueError, match="no message") as caught:
        messages.decode_call(data)
    assert len(str(caught.value)) < 100
