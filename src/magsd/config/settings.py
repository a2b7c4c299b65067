"""Every setting: its name, its default, its bounds, and which part gets it."""

import os
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from typing_extensions import override

from magsd.config.gateway_settings import GatewaySettings
from magsd.config.values import Bind, allowances, bind
from magsd.core import machine
from magsd.core.settings import CoreSettings
from magsd.engine.disk_pool import PoolSettings
from magsd.engine.network import NetworkSettings, instance_of
from magsd.engine.network.layout import Layout
from magsd.engine.vm_host import VmHostSettings
from magsd.model.errors import InvalidError
from magsd.model.quota import Limits, Quota
from magsd.storage.objects import AWS_VARIABLES, ObjectStoreSettings

PREFIX: Final = "MAGSD_"
_LIMITS: Final = Limits()
_SPARE_SLOTS: Final = 2


class Settings(GatewaySettings):
    """Every setting of `magsd`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    data_dir: Path = Field(
        Path("/var/lib/mags"), description="Where everything is kept. Absolute; one daemon each."
    )
    api_bind: Annotated[Bind, NoDecode, BeforeValidator(bind)] = Field(
        Bind("127.0.0.1", 7070),
        description="Address of the API and its documentation. Port 0: any free one.",
    )
    token: SecretStr | None = Field(
        None,
        description="Secret of the admin token that is made at the first start, at least 16 "
        "characters. Without it one is made up and printed once.",
    )
    database_url: str | None = Field(
        None,
        repr=False,  # It may hold a password.
        description="Such as `sqlite:////srv/mags.db` or `postgresql://USER:PASSWORD@HOST/NAME`. "
        "Default: the file `mags.db` in `data_dir`.",
    )
    object_store_url: str | None = Field(
        None,
        description="Where logs are kept: `file:///DIRECTORY`, or `s3://BUCKET/PREFIX` with the "
        "usual variables `AWS_…`. Default: the folder `objects` in `data_dir`.",
    )
    layers_cache_mb: int = Field(
        20_480, ge=0, description="MiB of stored layers of workspaces kept here for the next use."
    )
    workspace_versions: int = Field(
        10, ge=1, description="Versions that are kept of each workspace, the newest."
    )
    workspace_layers: int = Field(
        8, ge=1, le=12, description="Layers that a workspace may have; more become one."
    )
    workspace_import_gb: int = Field(
        16, ge=1, description="GiB that an archive may have that is imported, and what is in it."
    )
    workspace_import_entries: int = Field(
        1_000_000, ge=1, description="Files and folders that may be in it."
    )
    logs_cache_mb: int = Field(256, ge=0, description="MiB of copies of stored logs kept here.")
    log_rate_mb_s: int = Field(
        16, ge=0, description="MiB a second that a script may print in the long run. 0: no limit."
    )
    log_burst_mb: int = Field(64, ge=1, description="MiB that it may print faster than that.")
    retention_logs_days: int = Field(30, ge=0, description="Days that logs are kept. 0: for ever.")
    retention_jobs_days: int = Field(30, ge=0, description="Days for ended jobs. 0: for ever.")
    retention_files_days: int = Field(
        7, ge=0, description="Days that uploads are kept after a job used them last. 0: for ever."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least important messages that are logged."
    )
    engine: Literal["auto", "gvisor", "qemu", "fake"] = Field(
        "auto",
        description="What runs the VMs. `auto`: the best that is here; `fake`: scripts are "
        "simulated. A job may ask for another that is here.",
    )
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto",
        description="What carries out the instructions of microVMs (engine `qemu`). `auto`: KVM "
        "where it was tried and works, else emulation; `kvm`: no microVMs where it does not; "
        "`tcg`: emulation, and KVM is not tried. KVM is untested.",
    )
    fake_launch_ms: int = Field(0, ge=0, description="How long engine `fake` takes for a launch.")
    standard_image: str = Field(
        "standard", description="The image that jobs mean by `rootfs_type: standard`."
    )
    pids_limit: int = Field(4096, ge=64, le=4194304, description="Processes and threads in a VM.")
    vm_uid_base: int = Field(
        2_000_000,
        ge=1000,
        le=2**31,
        description="VM processes run as the 65536 user ids from this one on.",
    )
    slot_net: IPv4Network = Field(
        IPv4Network("198.18.0.0/16"),
        description="Addresses for the links between host and VMs; must be routed nowhere else.",
    )
    egress_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(allowances)] = Field(
        (),
        description="Networks that VMs may reach although they are private, as "
        "`10.1.0.0/16` or `10.1.2.3/32:5432`; separated by commas.",
    )
    vms_max: int = Field(
        256,
        ge=1,
        description="How many VMs may live at once; more jobs than that wait. No more than "
        "`slot_net` has room for.",
    )
    cpu_overcommit: float = Field(
        8.0, gt=0, description="So many virtual processors are given out for each of the machine's."
    )
    memory_overcommit: float = Field(
        1.0, gt=0, description="VMs may be given so many times the machine's memory together."
    )
    disk_overcommit: float = Field(
        4.0,
        gt=0,
        description="VMs may be given so many times the size of the data directory's filesystem "
        "together: what they do not write takes no room.",
    )
    disk_free_min_gb: float = Field(
        1.0, ge=0, description="With less than that free no job is taken on (503)."
    )
    disk_pool: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether VMs' disks lie in one file `disks.img` of `data_dir` with a filesystem "
        "that copies by reference. `auto`: where that of `data_dir` does not; `on`: always, or no "
        "sandboxes; `off`: never, and scripts stand still while their disk is copied for a "
        "workspace.",
    )
    disk_pool_gb: int | None = Field(
        None,
        ge=1,
        description="GiB that there is room for in that file, which takes only what is in it. It "
        "grows to this, and never becomes less. Default: nine tenths of what the host has free.",
    )
    queue_max: int = Field(
        10_000, ge=0, description="How many jobs may wait for room; one more is refused (503)."
    )
    account_jobs_max: int | None = Field(
        None,
        ge=0,
        description="How many unfinished jobs an account may have, waiting ones included (429). "
        "`magsd account set` decides for one account.",
    )
    account_vcpus_max: int | None = Field(
        None, ge=0, description="Virtual processors in the unfinished jobs of an account (429)."
    )
    account_memory_mb_max: int | None = Field(
        None, ge=0, description="MiB of memory in the unfinished jobs of an account (429)."
    )
    account_disk_gb_max: int | None = Field(
        None, ge=0, description="GiB of disk in the unfinished jobs of an account (429)."
    )
    account_files_mb_max: int | None = Field(
        None, ge=0, description="MiB of uploads that an account may keep (429)."
    )
    pool_min: int = Field(
        2, ge=0, description="How many VMs of the usual size wait for a script at the least."
    )
    pool_max: int = Field(
        8,
        ge=0,
        description="How many VMs of any one size and image wait at the most. 0: none do, and "
        "each job starts its own.",
    )
    pool_keepalive_s: float = Field(
        600.0,
        ge=0,
        description="For so many seconds after they were asked for last, more than `pool_min` "
        "VMs wait.",
    )
    launches_at_once: int | None = Field(
        None, ge=1, description="How many VMs may be started at once. Default: two a processor."
    )
    idle_timeout_s: int = Field(
        _LIMITS.idle_timeout_s,
        ge=1,
        description="A persistent job sleeps after so many seconds without use, unless it asks for "
        "another time or for none.",
    )
    min_idle_timeout_s: int = Field(
        _LIMITS.min_idle_timeout_s, ge=1, description="The least seconds it may ask for."
    )
    max_idle_timeout_s: int = Field(
        _LIMITS.max_idle_timeout_s, ge=1, description="The most seconds it may ask for."
    )
    wake_wait_s: float = Field(
        30.0,
        gt=0,
        description="Seconds that a job may take to be woken; who waits for it is refused then.",
    )
    default_timeout_s: int = Field(
        _LIMITS.default_timeout_s, ge=1, description="Seconds a script has when it asks for none."
    )
    max_timeout_s: int = Field(
        _LIMITS.max_timeout_s, ge=1, description="The most seconds a script may ask for."
    )
    default_vcpus: int = Field(
        _LIMITS.default_vcpus, ge=1, description="Virtual processors when none are asked for."
    )
    max_vcpus: int = Field(_LIMITS.max_vcpus, ge=1, description="The most virtual processors.")
    default_memory_mb: int = Field(
        _LIMITS.default_memory_mb, ge=1, description="MiB of memory when none is asked for."
    )
    min_memory_mb: int = Field(_LIMITS.min_memory_mb, ge=1, description="The least memory, MiB.")
    max_memory_mb: int = Field(_LIMITS.max_memory_mb, ge=1, description="The most memory, MiB.")
    default_disk_gb: int = Field(
        _LIMITS.default_disk_gb, ge=1, description="GiB of disk when none is asked for."
    )
    max_disk_gb: int = Field(_LIMITS.max_disk_gb, ge=1, description="The largest disk, GiB.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.data_dir.is_absolute():
            raise ValueError("data_dir must be an absolute path")
        for what in ("timeout_s", "vcpus", "memory_mb", "disk_gb"):
            if getattr(self, f"default_{what}") > getattr(self, f"max_{what}"):
                raise ValueError(f"default_{what} must not be above max_{what}")
        if self.min_idle_timeout_s > self.max_idle_timeout_s:
            raise ValueError("min_idle_timeout_s must not be above max_idle_timeout_s")
        if self.pool_min > self.pool_max:
            raise ValueError("pool_min must not be above pool_max")
        if self.default_memory_mb < self.min_memory_mb:
            raise ValueError("default_memory_mb must not be below min_memory_mb")
        return self

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the environment before the arguments, which are what a file says."""
        return env_settings, init_settings

    @property
    def effective_database_url(self) -> str:
        """Where the database is."""
        return self.database_url or f"sqlite:///{self.data_dir / 'mags.db'}"

    def require_database(self) -> None:
        """Raise `InvalidError` when there is no database yet."""
        if self.database_url is None and not (self.data_dir / "mags.db").exists():
            raise InvalidError(f"{self.data_dir} holds no database: run `magsd serve` first")

    def core(self, default_engine: str) -> CoreSettings:
        """Return what the core needs to know."""
        settings = CoreSettings(
            data_directory=self.data_dir,
            default_engine=default_engine,
            limits=Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__}),
            standard_image=self.standard_image,
            pids_limit=self.pids_limit,
            apps_scheme=self.shown_scheme,
            apps_domain=self.apps_domain,
            apps_port=self.shown_apps_port,
            has_gateways=self.edges > 0,
            ssh_public_host=self.shown_ssh_host,
            ssh_public_port=self.ssh_public_port or self.ssh_bind.port,
            capacity=machine.capacity(
                self.data_dir,
                vms_max=self._vms(),
                cpu_overcommit=self.cpu_overcommit,
                memory_overcommit=self.memory_overcommit,
                disk_overcommit=self.disk_overcommit,
            ),
            disk_free_min_bytes=int(self.disk_free_min_gb * (1 << 30)),
            queue_max=self.queue_max,
            quota=Quota(
                self.account_jobs_max,
                self.account_vcpus_max,
                self.account_memory_mb_max,
                self.account_disk_gb_max,
                self.account_files_mb_max,
            ),
            pool_min=self.pool_min,
            pool_max=self.pool_max,
            pool_total_max=min(self._slots() - self._vms(), 4 * self.pool_max),
            pool_keepalive_s=self.pool_keepalive_s,
            log_rate_bytes=self.log_rate_mb_s << 20,
            log_burst_bytes=self.log_burst_mb << 20,
            layers_cache_mb=self.layers_cache_mb,
            versions_kept=self.workspace_versions,
            layers_max=self.workspace_layers,
            import_bytes=self.workspace_import_gb << 30,
            import_entries=self.workspace_import_entries,
            logs_cache_mb=self.logs_cache_mb,
            wake_wait_s=self.wake_wait_s,
            retention_logs_days=self.retention_logs_days,
            retention_jobs_days=self.retention_jobs_days,
            retention_files_days=self.retention_files_days,
        )
        if self.launches_at_once is not None:
            settings = replace(settings, launches_at_once=self.launches_at_once)
        return settings

    def _slots(self) -> int:
        """Return how many VMs there is a network for."""
        return Layout("", self.slot_net).capacity - _SPARE_SLOTS

    def _vms(self) -> int:
        """Return how many jobs may have a VM: one without a network would fail, others wait."""
        return max(1, min(self.vms_max, self._slots() - self.pool_max))

    def objects(self) -> ObjectStoreSettings:
        """Return where objects are kept."""
        aws = {name: os.environ[name] for name in AWS_VARIABLES if name in os.environ}
        return ObjectStoreSettings(
            self.object_store_url or (self.data_dir / "objects").as_uri(), aws
        )

    def network(self) -> NetworkSettings:
        """Return what the network needs to know."""
        return NetworkSettings(
            instance=instance_of(self.data_dir),
            run_directory=self.data_dir / "run",
            slot_net=str(self.slot_net),
            egress_allow=self.egress_allow,
            spare=_SPARE_SLOTS,
        )

    def vm_host(self) -> VmHostSettings:
        """Return what all VMs have in common."""
        return VmHostSettings(
            data_directory=self.data_dir,
            instance=instance_of(self.data_dir),
            vm_uid_base=self.vm_uid_base,
            spare_disk_gb=self.default_disk_gb,
            disk_pool=PoolSettings(self.disk_pool, self.disk_pool_gb),
        )
