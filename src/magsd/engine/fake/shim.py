"""The shim of a pretended VM: durable streams, journal, freeze, hold, fence, and the end.

Speaks with as many connections as come (`client`); knows no socket. Small
while nothing runs: ten thousand of them share a process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from magsd.engine.fake.durable import Durable
from magsd.engine.fake.files import DATA, SYSTEM, Journal, make_state, write_end, write_stream
from magsd.engine.fake.machine import Machine, Nature
from magsd.engine.fake.request import Bucket
from magsd.engine.fake.world import Timer, World
from magsd.guest.state import EndCode
from magsd.guest.wire import STREAMS_MAX, Frame, Kind, pack_fields, parse_fields

CLIENTS_MAX: Final = 64
_RUNNING: Final = 1
_OVER: Final = 2
_DURABLE: Final = 1


class Connection(Protocol):
    """A connection, as the shim knows it."""

    has_hello: bool

    @property
    def is_full(self) -> bool:
        """So much is unsent that who sends more has to wait."""

    def send(self, frame: Frame) -> None:
        """Send a frame."""

    def tell_journal(self) -> None:
        """Tell how far the journal reaches, if that was not told."""

    def finish(self) -> None:
        """End it when all that was sent is out."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a pretended VM is."""

    vm: str
    epoch: int
    nature: Nature
    log_rate_bytes: int
    log_burst_bytes: int
    claim_s: float = 0.0
    """How long a claim takes."""
    has_disk: bool = False
    """It goes on from what another wrote."""


class Shim:
    """One VM and its shim, until `end`."""

    __slots__ = (
        "_clients",
        "_directory",
        "_fence",
        "_freezer",
        "_is_publishing",
        "_journal",
        "_on_end",
        "_spec",
        "_system_offset",
        "_thaw_timer",
        "bucket",
        "durables",
        "holder",
        "is_over",
        "machine",
        "open_streams",
        "world",
    )

    def __init__(
        self, world: World, directory: Path, spec: Spec, on_end: Callable[["Shim"], None]
    ) -> None:
        """Begin the VM in its run directory. Raises `OSError`."""
        self.world = world
        self.machine = Machine(world, spec.nature, self.end)
        self.bucket = Bucket(spec.log_rate_bytes, spec.log_burst_bytes)
        self.durables: dict[int, Durable] = {}
        self.holder: Connection | None = None
        self.open_streams = 0
        """All that run, durable and transient."""
        self.is_over = False
        self._spec = spec
        self._directory = directory
        self._journal = Journal(directory)
        self._on_end = on_end
        self._clients: set[Connection] = set()
        self._system_offset = 0
        self._freezer: Connection | None = None
        self._thaw_timer: Timer | None = None
        self._fence: Timer | None = None
        self._is_publishing = False
        make_state(directory)

    @property
    def vm(self) -> str:
        """Its id."""
        return self._spec.vm

    @property
    def has_disk(self) -> bool:
        """Whether it goes on from what another wrote."""
        return self._spec.has_disk

    @property
    def epoch(self) -> int:
        """Which life of its run it is."""
        return self._spec.epoch

    # --- connections -------------------------------------------------------------------

    def connected(self, client: Connection) -> bool:
        """Take a connection; False when there are too many."""
        if self.is_over or len(self._clients) >= CLIENTS_MAX:
            return False
        self._clients.add(client)
        return True

    def disconnected(self, client: Connection) -> None:
        """Note the end of a connection."""
        self._clients.discard(client)
        if self._freezer is client:
            self.thaw()
        if self.holder is client:
            self.end(EndCode.KILLED, "nobody claimed it")

    # --- durable streams -----------------------------------------------------------------

    def open_durable(
        self, client: Connection, stream: int, deadline_ms: int, payload: bytes
    ) -> None:
        """Open a durable stream unless it was; tell the connection what it is."""
        durable = self.durables.get(stream)
        if durable is None:
            if (objection := self._objection(payload)) is not None:
                fields = pack_fields("", [("error", objection)])
                client.send(Frame(Kind.RESET, stream, payload=fields))
                return
            durable = self.durables[stream] = Durable(self, stream, deadline_ms)
            self.open_streams += 1
            if self._saved(durable):
                client.send(Frame(Kind.OPEN, stream, _DURABLE, _RUNNING))
                self.machine.do(durable, lambda: durable.begin(payload))
        elif durable.is_over:
            client.send(Frame(Kind.OPEN, stream, _DURABLE, _OVER))
            client.send(durable.exit_frame())
        else:
            client.send(Frame(Kind.OPEN, stream, _DURABLE, _RUNNING))

    def signal(self, stream: int, number: int) -> None:
        """Send a signal to a durable stream that runs."""
        durable = self.durables.get(stream)
        if durable is not None and not durable.is_over:
            durable.signal(number)

    def durable_ended(self, durable: Durable) -> None:
        """Write down that a durable stream is over, then tell it."""
        self.open_streams -= 1
        if not self._saved(durable):
            return
        if all(each.is_over for each in self.durables.values()):
            self._journal.close()
        for client in self._clients:
            if client.has_hello:
                client.tell_journal()
                client.send(durable.exit_frame())

    def _objection(self, payload: bytes) -> str | None:
        if not payload.startswith(b"exec\0") or payload[-1:] != b"\0":
            return "a durable stream can only be an exec"
        if parse_fields(payload).get("stdin"):
            return "a durable stream has no input"
        if self.open_streams >= STREAMS_MAX:
            return "too many streams are open in this VM"
        return None

    def _saved(self, durable: Durable) -> bool:
        try:
            write_stream(self._directory, durable.state)
        except OSError as error:
            self._end_by_disk("the state file", error)
            return False
        return True

    # --- the journal ---------------------------------------------------------------------

    @property
    def journal_end(self) -> int:
        """How far the journal reaches."""
        return self._journal.end

    def journal_data(
        self, channel: int, kind: int, stream: int, offset: int, payload: bytes
    ) -> bool:
        """Append a record; a disk that is full ends the VM, and is False."""
        if self.is_over:
            return False
        try:
            self._journal.append(channel, kind, stream, offset, payload, self.world.wall_ns())
        except OSError as error:
            self._end_by_disk("the journal", error)
            return False
        if not self._is_publishing:
            self._is_publishing = True
            self.world.call_soon(self._publish)
        return True

    def note(self, text: str) -> bool:
        """Append a line of the shim's own."""
        line = f"{text}\n".encode("utf-8", "replace")
        is_written = self.journal_data(SYSTEM, DATA, 0, self._system_offset, line)
        self._system_offset += len(line)
        # Thousands of VMs may be told something at once, and print nothing.
        self._journal.close()
        return is_written

    def _publish(self) -> None:
        """Tell that the journal has grown: once for all that it grew meanwhile."""
        self._is_publishing = False
        for client in self._clients:
            # Whoever takes too little is told later, when it has taken what it was sent.
            if not client.is_full:
                client.tell_journal()

    # --- freeze, hold, fence -----------------------------------------------------------------

    def freeze(self, client: Connection, for_s: float) -> bool:
        """Stop what is inside, until it is thawed, for `for_s` (0: no end), or `client` leaves.

        False while another connection has frozen it.
        """
        if self._freezer not in (None, client):
            return False
        self.thaw()
        self._freezer = client
        self.machine.freeze()
        if for_s:
            self._thaw_timer = self.world.call_later(for_s, self.thaw)
        return True

    def thaw(self) -> None:
        """Let what is inside go on. Idempotent."""
        self._freezer = None
        if self._thaw_timer is not None:
            self._thaw_timer.cancel()
            self._thaw_timer = None
        self.machine.thaw()

    def claim(self, done: Callable[[], None]) -> None:
        """End the hold, and the freeze."""

        def claimed() -> None:
            if not self.is_over and self.holder is holder:
                self.thaw()
                self.holder = None
                done()

        holder = self.holder
        if self._spec.claim_s:
            self.world.call_later(self._spec.claim_s, claimed)
        else:
            claimed()

    def fence(self, for_s: float) -> None:
        """End the VM in `for_s`, unless this is asked again; 0: never."""
        if self._fence is not None:
            self._fence.cancel()
            self._fence = None
        if for_s:
            self._fence = self.world.call_later(
                for_s, lambda: self.end(EndCode.FENCED, "the fence was not renewed")
            )

    # --- the end -------------------------------------------------------------------------------

    def end(self, code: EndCode, detail: str) -> None:
        """End the VM; NONE: without a word, as if the shim itself had died. Idempotent."""
        if self.is_over:
            return
        self.is_over = True
        try:
            if code:
                for durable in self.durables.values():
                    if not durable.is_over:
                        write_stream(self._directory, durable.state)
                write_end(self._directory, code, detail, self.world.wall_ns())
        except OSError:
            pass  # the space is allocated; without a directory nobody will ask
        self._journal.close()
        for durable in self.durables.values():
            durable.cancel()
        for timer in (self._thaw_timer, self._fence):
            if timer is not None:
                timer.cancel()
        self.machine.stop()
        for client in list(self._clients):
            client.tell_journal()
            client.finish()
        self._on_end(self)

    def _end_by_disk(self, what: str, error: OSError) -> None:
        self.end(EndCode.HOST_DISK_FULL, f"{what} could not be written: {error.strerror}")
