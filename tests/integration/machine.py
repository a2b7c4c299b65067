"""A machine that the agent boots: QEMU as an engine starts it, driven over the agent's link."""

import os
import select
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from magsd.engine import initramfs
from magsd.engine import qemu_spec as spec
from magsd.engine.kernel import Kernel
from magsd.engine.qemu_machine import of_host
from magsd.engine.vm_host import PROGRAMS
from magsd.guest.wire import MAGIC, Kind
from tests.integration.agent_process import AGENT, REPOSITORY, AgentProcess, Ended, pack

KERNELS = REPOSITORY / "build/kernel"
SIZE = spec.Size(processors=1, memory_mb=256)
BOOT_PATIENCE_S = 120
"""A boot takes two seconds, and many times that on a host that is busy."""


class Machine(AgentProcess):
    """Owns a QEMU and the agent's link; use it in a `with` block.

    The guest has `layers` as /dev/vda and so on, and then `disk`, which it may write.
    """

    def __init__(self, folder: Path, disk: Path, layers: Sequence[Path] = ()):
        kernel = Kernel.read(KERNELS)
        archive = folder / "initramfs"
        archive.write_bytes(initramfs.build(AGENT, kernel.modules))
        with ExitStack() as held:

            def opened(path: Path, flags: int) -> int:
                descriptor = os.open(path, flags)
                held.callback(os.close, descriptor)
                return descriptor

            monitor = held.enter_context(socket.socket(socket.AF_UNIX))
            monitor.bind(str(folder / "monitor"))
            monitor.listen()
            given = spec.Descriptors(
                monitor=monitor.fileno(),
                layers=tuple(opened(layer, os.O_RDONLY) for layer in layers),
                disk=opened(disk, os.O_RDWR),
                tap=None,
            )
            tcg = spec.Accelerator("tcg")
            image, first_root = opened(kernel.image, os.O_RDONLY), opened(archive, os.O_RDONLY)
            arguments = spec.command(
                of_host(),
                tcg,
                SIZE,
                given,
                ["memory-backend-ram", "id=mem"],
                spec.boot(image, first_root, spec.kernel_command_line(of_host(), tcg, _tsc_khz())),
            )
            super().__init__(arguments, pass_fds=[*given.all, image, first_root])

    def boot(self) -> None:
        """Wait until the agent is there, and join."""
        self.socket.sendall(MAGIC)
        self.send(Kind.JOIN, payload=pack("version=1", f"nonce={'0' * 32}"))
        assert select.select([self.socket], [], [], BOOT_PATIENCE_S)[0], f"no boot: {self.log}"
        self.wait(lambda: self.joins)
        self.joins.clear()

    def must(self, what: str, *fields: str) -> Ended:
        """A control operation that has to succeed."""
        end = self.control(what, *fields)
        assert end.value == 0, end.fields
        return end

    def sh(self, script: str) -> str:
        """What a script prints; it has to succeed."""
        stream = self.run(["sh", "-c", script])
        assert stream.end
        assert stream.end.value == 0, stream.err
        return stream.out.decode()


def _tsc_khz() -> int | None:
    if not of_host().has_tsc:
        return None
    measured = subprocess.run([PROGRAMS / "mags-tsc"], capture_output=True, check=True)
    return int(measured.stdout)
