"""What edge and node say to each other: small JSON objects, checked strictly by whoever gets them.

The edge asks, the node answers; answers come in any order. The node takes what
comes from an edge for hostile, since strangers' bytes are parsed there: an
unknown word, a wrong type or one field too many ends the edge.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERSION: Final = 1
"""An edge of another version of this program is not listened to."""
CALL_MAX_BYTES: Final = 1024
ANSWER_MAX_BYTES: Final = 1 << 20
"""The environment of a job may be long."""
_HOST_MAX: Final = 253
_FINGERPRINT_MAX: Final = 64


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Number = Annotated[int, Field(ge=1, lt=2**53)]


class Hello(_Message):
    """The first thing that an edge says; it is not answered."""

    call: Literal["hello"] = "hello"
    version: int


class FindUrl(_Message):
    """What does a host name lead to? The answer has `request_id` and `port`, or neither."""

    call: Literal["find_url"] = "find_url"
    id: Number
    host: str = Field(max_length=_HOST_MAX)


class FindKey(_Message):
    """What does a key open? The answer has `request_id` and `environment`, or neither."""

    call: Literal["find_key"] = "find_key"
    id: Number
    fingerprint: str = Field(max_length=_FINGERPRINT_MAX)


class Hold(_Message):
    """Lease the VM of a job, waking it; `id` names the lease. The answer has `vm` and `epoch`."""

    call: Literal["hold"] = "hold"
    id: Number
    request_id: str = Field(max_length=36)


class Connect(_Message):
    """Send a connection to the VM of a lease. The answer brings a socket."""

    call: Literal["connect"] = "connect"
    id: Number
    lease: Number


class Release(_Message):
    """End a lease, or the wait for one. It is not answered; unknown ones are fine."""

    call: Literal["release"] = "release"
    lease: Number


Call = Annotated[Hello | FindUrl | FindKey | Hold | Connect | Release, Field(discriminator="call")]


class Refusal(_Message):
    """Why a call was refused: a `code` of `model.errors`, or `vm_ended`."""

    code: str
    message: str


class Answer(_Message):
    """The answer to the call of the same `id`; fields that a call has no use for are left out."""

    id: Number
    refusal: Refusal | None = None
    request_id: str | None = None
    port: int | None = None
    environment: dict[str, str] | None = None
    vm: str | None = None
    epoch: int | None = None
    has_socket: bool = False


VM_ENDED: Final = "vm_ended"
"""The code of a refusal: there is no VM to connect to any more."""

_CALLS: Final[TypeAdapter[Hello | FindUrl | FindKey | Hold | Connect | Release]] = TypeAdapter(Call)


def encode(message: BaseModel) -> bytes:
    """Return the bytes of a message."""
    return message.model_dump_json(exclude_defaults=True).encode()


def encode_call(message: _Message) -> bytes:
    """Return the bytes of a call, its name included."""
    return message.model_dump_json().encode()


def decode_call(data: bytes) -> Hello | FindUrl | FindKey | Hold | Connect | Release:
    """Return a call. Raises `ValueError` for anything else; its text holds nothing of `data`."""
    try:
        return _CALLS.validate_json(data)
    except ValidationError as error:
        raise ValueError(_reason(error)) from None


def decode_answer(data: bytes) -> Answer:
    """Return an answer. Raises `ValueError` for anything else."""
    try:
        return Answer.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(_reason(error)) from None


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"no message: {first['type']}"
