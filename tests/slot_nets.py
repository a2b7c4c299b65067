"""Networks for servers under test: of the processes that test on this host, each has its own."""

import fcntl
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pyroute2 import IPRoute

_held: list[int] = []
"""Open files whose locks say that a number is ours; a process's end gives them back."""


def reserve(numbers: Iterable[int]) -> str:
    """Return `198.19.N` for the first of `numbers` that no test has had while this process lives.

    A server that was stopped may have left VMs behind, which keep their addresses:
    so nothing is given back before.
    """
    folder = Path(tempfile.gettempdir(), "mags-test-networks")
    folder.mkdir(exist_ok=True)
    with IPRoute() as routes:
        on_host = [str(message.get_attr("IFA_ADDRESS")) for message in routes.get_addr()]
    for number in numbers:
        if any(address.startswith(f"198.19.{number}.") for address in on_host):
            continue  # of a run that was killed
        file = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            _held.append(file)
            return f"198.19.{number}"
    raise AssertionError("every network for tests is taken")
