"""What a connection may ask of a pretended VM's shim itself: a closed list."""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from magsd import __version__
from magsd.engine.fake.shim import Connection, Shim
from magsd.guest.state import EndCode
from magsd.guest.wire import VERSION, Fields, WireError, parse_fields

_DURABLES_TOLD_MAX: Final = 3000
"""So many fit into a payload."""
_MS_MAX: Final = 1 << 40


class Asker(Connection, Protocol):
    """A connection, as verbs know it."""

    shim: Shim
    is_scoped: bool
    journal_told: int

    def reply(self, number: int, *fields: tuple[str, str]) -> None:
        """Answer a request."""

    def reply_error(self, number: int, text: str) -> None:
        """Refuse a request."""


Verb = Callable[[Asker, int, Fields], None]


def answer(client: Asker, number: int, payload: bytes) -> None:
    """Do what a request asks for, and reply."""
    if client.is_scoped:
        client.reply_error(number, "this connection may use streams only")
        return
    try:
        fields = parse_fields(payload)
        verb = _VERBS.get(fields.word)
        if verb is None:
            client.reply_error(number, f"unknown verb: {fields.word[:100]}")
        else:
            verb(client, number, fields)
    except WireError as error:
        client.reply_error(number, str(error))


def _hello(client: Asker, number: int, fields: Fields) -> None:
    shim = client.shim
    if fields.get("version") != str(VERSION):
        client.reply_error(number, f"this shim speaks version {VERSION}")
        return
    epoch = str(shim.epoch)
    if fields.get("vm", shim.vm) != shim.vm or fields.get("epoch", epoch) != epoch:
        client.reply_error(number, f"this is VM {shim.vm}, epoch {epoch}")
        return
    durables = sorted(shim.durables.values(), key=lambda each: each.is_over)
    told = [("durable", f"{each.id}:{2 if each.is_over else 1}") for each in durables]
    client.reply(
        number,
        ("version", str(VERSION)),
        ("vm", shim.vm),
        ("epoch", epoch),
        ("agent", f"fake-{__version__}"),
        ("journal", str(shim.journal_end)),
        *told[:_DURABLES_TOLD_MAX],
    )
    client.has_hello = True
    client.journal_told = shim.journal_end
    for each in durables:
        if each.is_over:
            client.send(each.exit_frame())


def _start(client: Asker, number: int, fields: Fields) -> None:
    client.reply_error(number, "start is for the first connection, and once")


def _scope(client: Asker, number: int, fields: Fields) -> None:
    client.is_scoped = True
    client.reply(number)


def _note(client: Asker, number: int, fields: Fields) -> None:
    if not (text := fields.get("text")):
        client.reply_error(number, "text is missing")
    elif client.shim.note(text):
        client.reply(number)


def _freeze(client: Asker, number: int, fields: Fields) -> None:
    if client.shim.freeze(client, _seconds(fields)):
        client.reply(number)
    else:
        client.reply_error(number, "the VM is being frozen by another request")


def _thaw(client: Asker, number: int, fields: Fields) -> None:
    client.shim.thaw()
    client.reply(number)


def _hold(client: Asker, number: int, fields: Fields) -> None:
    if client.shim.holder not in (None, client):
        client.reply_error(number, "another connection holds this VM")
        return
    client.shim.holder = client
    client.reply(number)


def _claim(client: Asker, number: int, fields: Fields) -> None:
    if client.shim.holder is not client:
        client.reply_error(number, "this connection does not hold the VM")
        return
    client.shim.claim(lambda: client.reply(number))


def _fence(client: Asker, number: int, fields: Fields) -> None:
    client.shim.fence(_seconds(fields))
    client.reply(number)


def _kill(client: Asker, number: int, fields: Fields) -> None:
    reason = fields.get("reason")
    code = next((code for code in EndCode if code and code.name.lower() == reason), None)
    client.shim.end(code or EndCode.KILLED, reason if reason and code is None else "asked for")


def _seconds(fields: Fields) -> float:
    return min(fields.number("deadline_ms"), _MS_MAX) / 1000


_VERBS: Final[Mapping[str, Verb]] = {
    "hello": _hello,
    "start": _start,
    "scope": _scope,
    "note": _note,
    "freeze": _freeze,
    "thaw": _thaw,
    "hold": _hold,
    "claim": _claim,
    "fence": _fence,
    "kill": _kill,
}
