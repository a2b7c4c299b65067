"""How a VM ended, read from its run directory.

Pure reading: the shim's state file says how it ended the VM, the record
which boot and which process it belongs to.
"""

from pathlib import Path
from typing import Final

from magsd.engine.base import EndReason, VmEnd
from magsd.engine.gvisor_spec import sandbox_was_killed
from magsd.engine.record import VmRecord, boot_id
from magsd.guest.state import EndCode, VmState, read_state

_REASONS: Final = {
    EndCode.KILLED: EndReason.KILLED,
    EndCode.OUT_OF_MEMORY: EndReason.OUT_OF_MEMORY,
    EndCode.TOO_MANY_PROCESSES: EndReason.TOO_MANY_PROCESSES,
    EndCode.ENGINE_DIED: EndReason.ENGINE_DIED,
    EndCode.AGENT_DIED: EndReason.AGENT_DIED,
    EndCode.FENCED: EndReason.FENCED,
    EndCode.HOST_DISK_FULL: EndReason.HOST_DISK_FULL,
}


def read_end(run_directory: Path, record: VmRecord | None) -> VmEnd:
    """Return the end of a VM whose shim is no more."""
    state = read_state(run_directory)
    if state is not None and (reason := _REASONS.get(state.end)) is not None:
        return VmEnd(_corrected(reason, state), state.detail)
    if record is None:
        return VmEnd(EndReason.SHIM_DIED, "its run directory has no record")
    if record.boot_id != boot_id():
        return VmEnd(EndReason.HOST_RESTARTED, f"it ran in boot {record.boot_id}")
    if record.is_stopped:
        return VmEnd(EndReason.KILLED, "the shim did not end by itself and was killed")
    return VmEnd(EndReason.SHIM_DIED, f"shim {record.shim_pid} ended without a word")


def _corrected(reason: EndReason, state: VmState) -> EndReason:
    """Tell what the engine's exit status alone does not, see `sandbox_was_killed`."""
    if reason is EndReason.AGENT_DIED and sandbox_was_killed(state.detail):
        return EndReason.ENGINE_DIED
    return reason
