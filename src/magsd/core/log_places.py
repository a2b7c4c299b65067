"""Where a run's journal lies: beside its VM while it lives, put away afterwards.

A journal is in at most one of two places, and goes from one to the other by
one rename, so that it is found after a crash at any moment. What was put away
is a copy once the object store has it: `log_archive` takes it out and puts it
back, by one rename each.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from magsd.model.names import RequestId, VmId

_KEPT: Final = ("journal.", "state", "record.json")
_TRIES: Final = 4


class LogPlaces:
    """The folders `run/` and `logs/` of a data directory."""

    def __init__(self, data_directory: Path) -> None:
        self._runs = data_directory / "run"
        self._logs = data_directory / "logs"
        self._temporary = data_directory / "tmp"

    def run_directory(self, vm: VmId) -> Path:
        """Return the directory of a VM, there or not."""
        return self._runs / vm

    def archive(self, request_id: RequestId, epoch: int) -> Path:
        """Return where the journal of one life of a job lies once it is over."""
        return self._logs / request_id / str(epoch)

    def find(self, request_id: RequestId, epoch: int, vm: VmId | None) -> Path | None:
        """Return the directory that holds a journal now; `vm` is the one it may still be with."""
        put_away = self.archive(request_id, epoch)
        if put_away.is_dir():
            return put_away
        if vm is not None and (beside := self.run_directory(vm)).is_dir():
            return beside
        # Between the two looks it may have been put away.
        return put_away if put_away.is_dir() else None

    def vms(self) -> list[VmId]:
        """Return the names in `run/`."""
        if not self._runs.is_dir():
            return []
        return [VmId(entry.name) for entry in self._runs.iterdir() if entry.is_dir()]

    def make_run_directory(self, vm: VmId) -> Path:
        """Make a VM's directory, for its owner only."""
        directory = self.run_directory(vm)
        self._runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def size_bytes(self, vm: VmId) -> int:
        """Return how large what will be put away of a VM is; 0 when there is nothing."""
        directory = self.run_directory(vm)
        if not directory.is_dir():
            return 0
        return sum(
            entry.lstat().st_size for entry in directory.iterdir() if entry.name.startswith(_KEPT)
        )

    def put_away(self, request_id: RequestId, epoch: int, vm: VmId) -> None:
        """Move the journal of a VM that is no more to the logs.

        May be asked again after a crash at any step, and where nothing is left to move.
        """
        directory, target = self.run_directory(vm), self.archive(request_id, epoch)
        if not directory.is_dir():
            return
        for entry in directory.iterdir():
            if not entry.name.startswith(_KEPT) or _is_blank(entry):
                _remove(entry)
        _move(directory, target)

    def temporary(self) -> Path:
        """Return the path of a new thing that does not outlive the daemon; the caller makes it."""
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        return self._temporary / f"log-{secrets.token_hex(8)}"

    def put_back(self, directory: Path, request_id: RequestId, epoch: int) -> None:
        """Move what was restored to where it lay before it was taken out."""
        with suppress(FileExistsError):
            _move(directory, self.archive(request_id, epoch))

    def take_out(self, request_id: RequestId, epoch: int) -> Path | None:
        """Take what was put away out of sight; return it, to be removed, if there was any."""
        taken, place = self.temporary(), self.archive(request_id, epoch)
        try:
            place.rename(taken)
        except FileNotFoundError:
            return None
        with suppress(OSError):  # the job's other journals are there
            place.parent.rmdir()
        return taken

    def put_away_ones(self) -> Iterator[tuple[RequestId, int]]:
        """Yield everything that is put away here."""
        for job in self._logs.iterdir() if self._logs.is_dir() else ():
            with suppress(OSError):  # it may go while it is looked at
                yield from ((RequestId(job.name), int(epoch.name)) for epoch in job.iterdir())

    def remove(self, vm: VmId) -> None:
        """Remove the directory of a VM that has no journal, or that no run knows."""
        shutil.rmtree(self.run_directory(vm), ignore_errors=True)


def folder_bytes(folder: Path) -> int:
    """Return how large the files of a folder are together."""
    return sum(entry.lstat().st_size for entry in folder.iterdir())


def _move(directory: Path, target: Path) -> None:
    # The folder around it may be gone again: what else was in it was taken out.
    for attempt in range(_TRIES):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            directory.rename(target)
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
        else:
            return


def _is_blank(entry: Path) -> bool:
    """Say whether it is a segment of a journal that was never written."""
    return entry.name.startswith("journal.") and entry.lstat().st_size == 0


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
