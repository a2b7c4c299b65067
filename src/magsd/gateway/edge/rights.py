"""What the process of an edge gives up before a stranger's byte reaches it."""

import ctypes
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from magsd.gateway.plan import Rights

_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_LAST_CAPABILITY: Final = Path("/proc/sys/kernel/cap_last_cap")
_THREADS_MAX: Final = 512
"""Of all processes of the user: an edge starts none, but a library may have threads."""
_OOM_SCORE: Final = "500"
"""When the machine's memory is used up an edge goes before the node and before VMs."""


def give_up(rights: Rights, node_pid: int) -> None:
    """Keep nothing but the open descriptors, and end with the process `node_pid`.

    Raises `OSError` when something cannot be given up, `RuntimeError` when the
    node has ended already.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    if rights.user is not None and rights.group is not None:
        for capability in range(int(_LAST_CAPABILITY.read_text()) + 1):
            _prctl(_PR_CAPBSET_DROP, capability)
        os.setgroups([])
        os.setresgid(rights.group, rights.group, rights.group)
        # Takes the capabilities along, effective and permitted.
        os.setresuid(rights.user, rights.user, rights.user)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NPROC, _THREADS_MAX)
    _limit(resource.RLIMIT_NOFILE, rights.open_files)
    _limit(resource.RLIMIT_DATA, rights.memory_bytes)
    # After the change of user, which undoes it.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != node_pid:
        raise RuntimeError("the node has ended")


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (value, value))


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} {argument}")
