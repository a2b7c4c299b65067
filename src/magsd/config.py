"""What the operator decides: a TOML file, and environment variables, which win over it.

The only place that reads either; everything else is given values. A setting
that nobody knows is refused: a misspelt limit must not be no limit.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from typing_extensions import override

from magsd.api.errors import invalid_fields
from magsd.core.settings import CoreSettings
from magsd.engine.gvisor import EngineSettings
from magsd.engine.network import NetworkSettings, instance_of
from magsd.engine.network.layout import Layout
from magsd.engine.network.rules import Allowance
from magsd.model.errors import InvalidError
from magsd.model.quota import Limits

PREFIX: Final = "MAGSD_"
FILE_VARIABLE: Final = "MAGSD_CONFIG"
DEFAULT_FILE: Final = Path("/etc/mags/magsd.toml")
_LIMITS: Final = Limits()
_SPARE_SLOTS: Final = 2


class Bind(NamedTuple):
    """An address to listen at."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def _bind(value: object) -> object:
    if not isinstance(value, str):
        return value
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:7070")
    return Bind(host, int(port))


def _allowances(value: object) -> object:
    entries = value.replace(",", " ").split() if isinstance(value, str) else value
    if isinstance(entries, list):
        for entry in entries:
            Allowance.parse(str(entry))
    return entries


class Settings(BaseSettings):
    """Every setting of `magsd`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    data_dir: Path = Field(
        Path("/var/lib/mags"), description="Where everything is kept. Absolute; one daemon each."
    )
    api_bind: Annotated[Bind, NoDecode, BeforeValidator(_bind)] = Field(
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
        description="Such as `sqlite:////srv/mags.db`. Default: the file `mags.db` in `data_dir`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least important messages that are logged."
    )
    engine: Literal["auto", "gvisor"] = Field(
        "auto", description="What runs the VMs; `auto` takes the best one that works here."
    )
    standard_image: str = Field(
        "standard", description="The image that jobs mean by `rootfs_type: standard`."
    )
    pids_limit: int = Field(
        4096, ge=64, le=4194304, description="How many processes and threads a VM may have."
    )
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
    egress_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_allowances)] = Field(
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
    launches_at_once: int | None = Field(
        None, ge=1, description="How many VMs may be started at once. Default: two a processor."
    )
    apps_scheme: Literal["http", "https"] = Field(
        "http", description="Of the addresses in a job's `url`."
    )
    apps_domain: str = Field(
        "apps.localhost", min_length=1, description="Domain of the addresses in a job's `url`."
    )
    apps_port: int = Field(
        7071,
        ge=0,
        le=65535,
        description="Port of the addresses in a job's `url`. 0: the scheme's own.",
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

    def core(self, default_engine: str) -> CoreSettings:
        """Return what the core needs to know."""
        settings = CoreSettings(
            data_directory=self.data_dir,
            default_engine=default_engine,
            limits=Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__}),
            standard_image=self.standard_image,
            pids_limit=self.pids_limit,
            apps_scheme=self.apps_scheme,
            apps_domain=self.apps_domain,
            apps_port=self.apps_port or None,
            # A VM that finds no slot would fail; one that is not begun waits.
            vms_max=max(1, min(self.vms_max, Layout("", self.slot_net).capacity - _SPARE_SLOTS)),
        )
        if self.launches_at_once is not None:
            settings = replace(settings, launches_at_once=self.launches_at_once)
        return settings

    def network(self) -> NetworkSettings:
        """Return what the network needs to know."""
        return NetworkSettings(
            instance=instance_of(self.data_dir),
            run_directory=self.data_dir / "run",
            slot_net=str(self.slot_net),
            egress_allow=self.egress_allow,
            spare=_SPARE_SLOTS,
        )

    def gvisor(self) -> EngineSettings:
        """Return what the engine needs to know."""
        return EngineSettings(
            data_directory=self.data_dir,
            instance=instance_of(self.data_dir),
            vm_uid_base=self.vm_uid_base,
            spare_disk_gb=self.default_disk_gb,
        )


def load() -> Settings:
    """Read the file and the environment. Raises `InvalidError` that names what is wrong."""
    named = os.environ.get(FILE_VARIABLE)
    path = Path(named) if named else DEFAULT_FILE
    given = _read(path) if named or path.exists() else {}
    known = {name: name for name in Settings.model_fields}
    _refuse_unknown(given, known, f"in {path}")
    variables = {variable_of(name): name for name in known} | {FILE_VARIABLE: ""}
    found = [name for name in os.environ if name.startswith(PREFIX)]
    _refuse_unknown(found, variables, "in the environment")
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = invalid_fields(error.errors(include_url=False, include_input=False))
        raise InvalidError(f"settings: {wrong.message}") from None


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InvalidError(f"settings: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidError(f"settings: {path} is not TOML: {error}") from None


def _refuse_unknown(found: Iterable[str], known: Iterable[str], where: str) -> None:
    names = list(known)
    for name in found:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise InvalidError(f"settings: there is no setting {name!r} ({where}){hint}")


_REFERENCE: Final = """\
# Settings of magsd

Written by `tools/write_openapi.py`; do not edit.

Read at the start from the TOML file that `{file_variable}` names, else `{file}` if there is one,
as top-level keys; an environment variable wins over the file. A setting that nobody knows is
refused.

| key | variable | default | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """Return the page of the documentation about settings."""
    page = _REFERENCE.format(file_variable=FILE_VARIABLE, file=DEFAULT_FILE)
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = f"`{default}`" if default not in (None, ()) else ""
        page += f"| `{name}` | `{variable_of(name)}` | {shown} | {field.description} |\n"
    return page
