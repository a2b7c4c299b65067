"""A host for the engine `gvisor`."""

import os
from typing import Any

from typing_extensions import override

from magsd.engine.gvisor import GvisorEngine, GvisorSettings
from magsd.engine.vm_host import VmHost
from tests.conformance.shim_host import GUEST_FILES, ShimHost


class GvisorHost(ShimHost):
    @override
    def make(self, vm_host: VmHost, **settings: Any) -> GvisorEngine:
        return GvisorEngine(GvisorSettings(**settings), vm_host, GUEST_FILES)

    @override
    def processors(self, vcpus: float) -> int:
        return min(2, len(os.sched_getaffinity(0)))
