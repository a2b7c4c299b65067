"""What the core needs to know from the operator, as values."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from magsd.model.amount import Amount
from magsd.model.quota import Limits, Quota

_PLENTY: Final = 1 << 40


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
    has_gateways: bool = True
    """Whether jobs can be reached from outside at all."""
    ssh_public_host: str = "127.0.0.1"
    """Where callers find the SSH gateway."""
    ssh_public_port: int = 7022
    node: str = "local"
    """Name of this machine in rows."""
    launches_at_once: int = 2 * (os.cpu_count() or 1)
    capacity: Amount = field(default_factory=lambda: Amount(256, _PLENTY, _PLENTY, _PLENTY))
    """What VMs may take together; jobs that ask for more wait `pending`, in turn by account."""
    disk_free_min_bytes: int = 0
    """With less than that free for the data directory no job is taken on."""
    queue_max: int = 10_000
    """How many jobs may wait for room."""
    quota: Quota = field(default_factory=Quota)
    """Of accounts that have none of their own."""
    pool_min: int = 0
    """How many VMs of the usual shape wait at the least."""
    pool_max: int = 0
    """How many VMs of any shape wait at the most; 0: none do."""
    pool_total_max: int = 0
    """How many VMs of all shapes together wait at the most."""
    pool_keepalive_s: float = 600.0
    """For so long after they were asked for last, more than `pool_min` wait."""
    log_rate_bytes: int = 16 << 20
    """A second; whoever prints more is held back after `log_burst_bytes`. 0: nobody is."""
    log_burst_bytes: int = 64 << 20
    logs_cache_mb: int = 256
    """MiB of copies of logs that the object store has."""
    layers_cache_mb: int = 20_480
    """MiB of layers that the object store has and no job uses."""
    layers_max: int = 8
    """Own layers of a workspace; more become one."""
    versions_kept: int = 10
    """Of each workspace, the newest."""
    import_bytes: int = 16 << 30
    """How large an archive may be that becomes a workspace, and what is in it."""
    import_entries: int = 1_000_000
    """How many files and folders may be in it."""
    retention_logs_days: int = 30
    """After so many days a log goes; 0: never."""
    retention_jobs_days: int = 30
    """So many days after its end a job goes; 0: never."""
    retention_files_days: int = 7
    """So many days after a job used it last an upload goes; 0: never."""
    snapshots_max: int = 4096
    """Ended jobs whose last status is kept in memory."""
    exec_output_bytes: int = 128 << 20
    """What all commands that callers run at a time may keep of their output together, in memory."""
    wake_wait_s: float = 30.0
    """How long a caller waits for a job that sleeps to be woken."""
    stop_wait_s: float = 25.0
    """How long a caller of `stop` waits for the end; clients give up at 30."""

    def url_of(self, subdomain: str) -> str:
        """Return the address of a job's web server."""
        port = f":{self.apps_port}" if self.apps_port else ""
        return f"{self.apps_scheme}://{subdomain}.{self.apps_domain}{port}"
