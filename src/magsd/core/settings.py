"""What the core needs to know from the operator, as values."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from magsd.model.quota import Limits


@dataclass(frozen=True)
class CoreSettings:
    """Settings of one node."""

    data_directory: Path
    default_engine: str
    """A key of the engines that `Application` is given."""
    limits: Limits = field(default_factory=Limits)
    standard_image: str = "standard"
    """The image that `rootfs_type: standard` means."""
    pids_limit: int = 4096
    apps_scheme: str = "http"
    apps_domain: str = "apps.localhost"
    apps_port: int | None = 7071
    """None when the scheme's own port is used."""
    node: str = "local"
    """Name of this machine in rows."""
    launches_at_once: int = 2 * (os.cpu_count() or 1)
    vms_max: int = 256
    """How many VMs may live at once; more jobs than that wait `pending`, in turn by account."""
    snapshots_max: int = 4096
    """Ended jobs whose last status is kept in memory."""
    stop_wait_s: float = 25.0
    """How long a caller of `stop` waits for the end; clients give up at 30."""

    def url_of(self, subdomain: str) -> str:
        """Return the address of a job's web server."""
        port = f":{self.apps_port}" if self.apps_port else ""
        return f"{self.apps_scheme}://{subdomain}.{self.apps_domain}{port}"
