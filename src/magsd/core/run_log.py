"""The system lines of one run: what the platform says in a job's log.

Owns who may write them: the shim while there is one, this process before and
after.
"""

from pathlib import Path

import structlog

from magsd.aio import Clock
from magsd.core.log_places import LogPlaces
from magsd.core.pulse import Pulses
from magsd.guest.journal import JournalReader, append_note
from magsd.model.records import Run

_log = structlog.get_logger()


class RunLog:
    """Appends to the journals of one node's runs whose VMs have no shim."""

    def __init__(self, places: LogPlaces, pulses: Pulses, clock: Clock) -> None:
        self._places = places
        self._pulses = pulses
        self._clock = clock

    def append(self, run: Run, text: str) -> None:
        """Append a line. The run has a VM, whose shim does not live (yet, or any more)."""
        assert run.vm_id is not None
        at_ns = int(self._clock.now().timestamp() * 1e9)
        try:
            append_note(self._directory(run), text, at_ns)
        except OSError as error:  # A full disk must not keep the run from its end.
            _log.warning("note_lost", text=text, error=str(error))
        self._pulses.beat(run.request_id)

    def ends_with(self, run: Run, text: str) -> bool:
        """Say whether a line is the last of a run's journal. The run has a VM."""
        try:
            return JournalReader(self._directory(run)).ends_with_note(text)
        except OSError:
            return False

    def has_told_since(self, run: Run, text: str, at_ns: int) -> bool:
        """Say whether a line stands near the end of a run's journal, not older than that."""
        try:
            return JournalReader(self._directory(run)).has_note_since(text, at_ns)
        except OSError:
            return False

    def _directory(self, run: Run) -> Path:
        assert run.vm_id is not None
        directory = self._places.find(run.request_id, run.journal, run.vm_id)
        return directory or self._places.make_run_directory(run.vm_id)
