"""How much of a machine something takes: what admission and quotas count in. Pure."""

from dataclasses import dataclass, fields
from typing import Self

from magsd.model.records import RunSpec


@dataclass(frozen=True, slots=True)
class Amount:
    """So many VMs, with so many processors, so much memory and disk together."""

    vms: int = 0
    vcpus: int = 0
    memory_mb: int = 0
    disk_gb: int = 0

    @classmethod
    def of(cls, spec: RunSpec) -> Self:
        """Return what the VM of a run takes."""
        return cls(1, spec.vcpus, spec.memory_mb, spec.disk_gb)

    @property
    def asleep(self) -> "Amount":
        """What of it stays taken on a machine while the VM sleeps."""
        return Amount(disk_gb=self.disk_gb)

    @property
    def counted_asleep(self) -> "Amount":
        """What of it counts for an account's quota while the VM sleeps."""
        return Amount(vms=self.vms, disk_gb=self.disk_gb)

    def plus(self, other: "Amount") -> "Amount":
        """Return both together."""
        return Amount(
            self.vms + other.vms,
            self.vcpus + other.vcpus,
            self.memory_mb + other.memory_mb,
            self.disk_gb + other.disk_gb,
        )

    def minus(self, other: "Amount") -> "Amount":
        """Return what is left of this when `other` is taken away; may be below nothing."""
        return Amount(
            self.vms - other.vms,
            self.vcpus - other.vcpus,
            self.memory_mb - other.memory_mb,
            self.disk_gb - other.disk_gb,
        )

    def lacking(self, room: "Amount") -> str | None:
        """Return the name of the first field of which this takes more than `room` has."""
        for field in fields(self):
            asked, there = getattr(self, field.name), getattr(room, field.name)
            # What takes nothing of something always fits, however little there is.
            if asked and asked > there:
                return field.name
        return None
