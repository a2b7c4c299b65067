"""A host for the engine `qemu`."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from typing_extensions import override

from magsd.engine.qemu import QemuEngine, QemuSettings
from magsd.engine.vm_host import VmHost
from tests.conformance.shim_host import GUEST_FILES, ShimHost


class QemuHost(ShimHost):
    is_linux = True
    slot_nets = ("198.19.99.0/24",)
    """Always the same: guests know their nameserver, and templates with them."""

    @override
    def make(self, vm_host: VmHost, **settings: Any) -> QemuEngine:
        return QemuEngine(QemuSettings(**settings), vm_host, GUEST_FILES)

    def template(self) -> Path | None:
        """The folder of the template of the usual plan, if it is there."""
        usual = {
            "memory_mb": 512,
            "disk_gb": 2,
            "processors": 1,
            "pids_limit": 150,
            "network": True,
        }
        return self._template(usual)

    def _template(self, wanted: dict[str, int]) -> Path | None:
        # What begins with a dot is being written, and is renamed when it is whole.
        for manifest in (self.data / "templates").glob("[!.]*/manifest.json"):
            facts = json.loads(manifest.read_text())["facts"]
            if wanted.items() <= facts.items():
                return manifest.parent
        return None

    def bare_template(self) -> Path | None:
        """The folder of the template of those who read disks, if it is there."""
        return self._template({"slots": 16, "memory_mb": 512, "processors": 1})

    def leave_templates(self, directory: Path) -> None:
        """Leave the templates that most tests use for hosts to come, unless they are there."""
        for made in (self.template(), self.bare_template()):
            place = directory / "templates"
            if made is not None and not (place / made.name).exists():
                # By links: the files are sparse.
                shutil.copytree(made, place / made.name, copy_function=os.link)

    @override
    def processors(self, vcpus: float) -> int:
        return math.ceil(vcpus)
