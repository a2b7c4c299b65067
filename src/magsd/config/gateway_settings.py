"""Settings of what can be reached inside VMs from outside."""

import socket
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode

from magsd.config.values import Bind, bind, domain, separated
from magsd.gateway.ingress_settings import IngressSettings
from magsd.model.errors import InvalidError


class GatewaySettings(BaseSettings):
    """The settings of the gateways, a part of all settings."""

    edges: int = Field(
        1,
        ge=0,
        le=64,
        description="How many processes take what comes from outside for URLs and SSH, without "
        "rights. 0: nothing in a VM can be reached from outside.",
    )
    apps_bind: Annotated[Bind, NoDecode, BeforeValidator(bind)] = Field(
        Bind("127.0.0.1", 7071),
        description="Address at which the URLs of jobs are served. Port 0: any free one.",
    )
    apps_scheme: Literal["http", "https"] | None = Field(
        None,
        description="`http` or `https`, of the addresses in a job's `url`. Default: `https` with "
        "`apps_cert`, else `http`.",
    )
    apps_domain: Annotated[str, AfterValidator(domain)] = Field(
        "apps.localhost", description="Domain of the addresses in a job's `url`."
    )
    apps_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the addresses in a job's `url`. 0: the scheme's own, as behind a "
        "proxy. Default: that of `apps_bind`.",
    )
    trusted_proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(separated)
    ] = Field(
        (),
        description="Networks of proxies in front of `apps_bind`, separated by commas: what they "
        "say of who asks is believed.",
    )
    ssh_bind: Annotated[Bind, NoDecode, BeforeValidator(bind)] = Field(
        Bind("127.0.0.1", 7022),
        description="Address at which SSH is served for all VMs. Port 0: any free one.",
    )
    ssh_public_host: str | None = Field(
        None,
        min_length=1,
        description="Where clients find it. Default: the host of `ssh_bind`, or the name of this "
        "machine where that is all of its addresses.",
    )
    ssh_public_port: int | None = Field(
        None, ge=1, le=65535, description="And its port. Default: that of `ssh_bind`."
    )
    apps_cert: Path | None = Field(
        None,
        description="File with the certificate for all names below `apps_domain`, and its chain, "
        "PEM: URLs are served by TLS then. Read at the start.",
    )
    apps_key: Path | None = Field(None, description="File with its private key, PEM.")

    @property
    def shown_scheme(self) -> str:
        """The scheme of a job's URL."""
        return self.apps_scheme or ("http" if self.apps_cert is None else "https")

    @property
    def shown_apps_port(self) -> int | None:
        """The port of a job's URL; None: the scheme's own."""
        return (self.apps_bind.port if self.apps_port is None else self.apps_port) or None

    @property
    def shown_ssh_host(self) -> str:
        """The host that callers are told for SSH."""
        if self.ssh_public_host is not None:
            return self.ssh_public_host
        return socket.gethostname() if self.ssh_bind.is_everywhere else self.ssh_bind.host

    def ingress(self) -> IngressSettings:
        """Return what the HTTP gateway needs to know. Raises `InvalidError`."""
        if (self.apps_cert is None) is not (self.apps_key is None):
            raise InvalidError("MAGSD_APPS_CERT and MAGSD_APPS_KEY belong together: set both")
        return IngressSettings(
            trusted_proxies=self.trusted_proxies,
            certificate=_content("MAGSD_APPS_CERT", self.apps_cert),
            key=_content("MAGSD_APPS_KEY", self.apps_key),
        )


def _content(variable: str, path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidError(f"{variable}: {path} cannot be read: {error.strerror}") from None
