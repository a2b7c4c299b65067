"""Whether a job may be taken on, and what it has at once: decided when it is submitted.

Refuses what this machine can never give, what an account may not have, and
more waiting jobs than there may be. What has room and finds a VM that waits
begins without a turn of its own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from magsd.core.launch import Shape
from magsd.core.node import Node
from magsd.core.vm_start import HeadStart
from magsd.model.amount import Amount
from magsd.model.errors import CapacityError, ConflictError, InvalidError, MagsError
from magsd.model.names import AccountId
from magsd.model.records import RunSpec

_WHAT: Final = {
    "vms": ("", "VM"),
    "vcpus": ("vcpus: ", "virtual processors"),
    "memory_mb": ("memory_mb: ", "MiB of memory"),
    "disk_gb": ("disk_gb: ", "GiB of disk"),
}
_DISK_LOOK_S: Final = 1.0


@dataclass(slots=True)
class Admitted:
    """A job that may be taken on, until its actor has what is counted for it."""

    need: Amount
    start: HeadStart
    is_taken_over: bool = False
    """Its actor has it now, and gives it back."""


class Admission:
    """The admission of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._disk_seen_at = float("-inf")
        self._is_disk_full = False

    @contextmanager
    def admitted(
        self, account_id: AccountId, spec: RunSpec, shape: Shape, *, is_pooled: bool = True
    ) -> Iterator[Admitted]:
        """Count a job inside the block, and after it when its actor has taken it over.

        `is_pooled`: a VM that waits may serve it at once.
        Raises `InvalidError`, `QuotaError` or `CapacityError`; nothing is counted then.
        """
        need = Amount.of(spec)
        try:
            self._check(need)
            self._node.quotas.take(account_id, need)
        except MagsError as error:
            self._node.metrics.refused(error.code)
            raise
        admitted = Admitted(need, self._head_start(need, spec, shape, is_pooled))
        try:
            yield admitted
        except ConflictError:
            raise  # Nothing was written, for certain.
        except BaseException:
            # Whether it was written or not: nobody else may have the VM.
            if not admitted.is_taken_over and admitted.start.vm is not None:
                self._node.pool.throw_away(admitted.start.vm)
                admitted.start.vm = None
            raise
        finally:
            if not admitted.is_taken_over:
                self._undo(account_id, admitted)

    def _check(self, need: Amount) -> None:
        if (name := need.lacking(self._node.room.capacity)) is not None:
            prefix, what = _WHAT[name]
            most = getattr(self._node.room.capacity, name)
            raise InvalidError(f"{prefix}this machine has {most} {what} for all jobs together")
        if self._node.room.waiting >= self._node.settings.queue_max:
            raise CapacityError(
                f"{self._node.settings.queue_max} jobs wait for room already: try again later"
            )
        if self._has_full_disk():
            raise CapacityError("the host's disk is nearly full: its operator must free some space")

    def _has_full_disk(self) -> bool:
        least = self._node.settings.disk_free_min_bytes
        now = self._node.clock.monotonic()
        if least and now - self._disk_seen_at > _DISK_LOOK_S:
            self._disk_seen_at = now
            found = os.statvfs(self._node.settings.data_directory)
            self._is_disk_full = found.f_bavail * found.f_frsize < least
        return self._is_disk_full

    def _head_start(self, need: Amount, spec: RunSpec, shape: Shape, is_pooled: bool) -> HeadStart:
        if not self._node.room.try_acquire(need):
            return HeadStart()
        vm = self._node.pool.take(shape) if is_pooled else None
        return HeadStart(spec, has_room=True, has_asked=is_pooled, vm=vm)

    def _undo(self, account_id: AccountId, admitted: Admitted) -> None:
        """Give back what was counted for a job that was not taken on after all."""
        self._node.quotas.give_back(account_id, admitted.need)
        if admitted.start.has_room:
            self._node.room.release(admitted.need)
        if admitted.start.vm is not None:
            self._node.pool.put_back(admitted.start.vm)
