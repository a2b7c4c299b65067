"""What a node hands to an edge that it starts: descriptors, whom to be, and settings.

It travels in a memory file, because it holds keys.
"""

import os
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter, ValidationError

from magsd.gateway.ingress_settings import IngressSettings
from magsd.gateway.ssh_settings import SshSettings

_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Rights:
    """Whom an edge is to be; a node that is not root's cannot make it anybody else."""

    user: int | None
    """User id, not 0; None: the node's own."""
    group: int | None
    open_files: int
    """At the most; less where the node has less."""
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePlan:
    """What one edge needs to begin."""

    node_fd: int
    """A connected socket to the node."""
    apps_fd: int
    """A listening socket."""
    ssh_fd: int
    """A listening socket."""
    node_pid: int
    rights: Rights
    log_level: str
    ingress: IngressSettings
    ssh: SshSettings


_PLAN: Final = TypeAdapter(EdgePlan)


def write(plan: EdgePlan) -> int:
    """Return a descriptor that `plan` can be read from. It is the caller's."""
    descriptor = os.memfd_create("edge-plan")
    try:
        content = _PLAN.dump_json(plan)
        if os.pwrite(descriptor, content, 0) != len(content):
            raise OSError("a plan was not written whole")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read(descriptor: int) -> EdgePlan:
    """Return a plan and close the descriptor. Raises `ValueError`."""
    try:
        return _PLAN.validate_json(os.pread(descriptor, _BYTES_MAX, 0))
    except ValidationError as error:
        # Its own text would show keys.
        raise ValueError(f"the plan cannot be read: {error.error_count()} errors") from None
    finally:
        os.close(descriptor)
