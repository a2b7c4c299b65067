"""The service: whether it runs here, and what systemd makes of it."""

from pathlib import Path
from typing import Final

import httpx

from magsd.config import Settings
from magsd.doctor.check import Check, Verdict
from magsd.engine import process
from magsd.engine.process import ProcessError

_SERVICE_S: Final = 5.0
_SYSTEMD: Final = Path("/run/systemd/system")
_SYSTEMCTL_S: Final = 5.0
_UNIT: Final = "magsd.service"
_PROPERTIES: Final = "LoadState,ActiveState,UnitFileState,KillMode,Delegate,NeedDaemonReload"
_HOW_TO: Final = "see docs/how-to/run-as-a-service.md"


async def service(settings: Settings) -> Check:
    """Look whether a service runs here, and ask it how it is."""
    url = f"http://{settings.api_bind}"
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_SERVICE_S) as client:
            reply = await client.get(f"{url}/readyz")
            said = reply.json()
            reason = "" if reply.is_success else said["error"]
            warning = said.get("warning", "")
    except httpx.ConnectError:
        return Check("service", Verdict.OK, "not running; `magsd serve` starts it")
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        step = "set MAGSD_API_BIND to an address that is free"
        return Check("service", Verdict.WARN, f"something else answers at {url}", step)
    if reason:
        return Check("service", Verdict.WARN, f"runs at {url}, but is not ready: {reason}")
    if warning:
        return Check("service", Verdict.WARN, f"runs at {url}, and says: {warning}")
    return Check("service", Verdict.OK, f"runs at {url}")


async def unit() -> Check:
    """Look at the unit of systemd, where systemd runs."""
    if not _SYSTEMD.is_dir():
        return Check("systemd", Verdict.OK, "does not run this machine")
    try:
        show = ["systemctl", "show", _UNIT, f"--property={_PROPERTIES}"]
        shown = await process.run(show, timeout_s=_SYSTEMCTL_S)
    except ProcessError as error:
        return Check("systemd", Verdict.WARN, f"{error.message} ({error.detail})")
    return judge_unit(dict(line.partition("=")[::2] for line in shown.text.splitlines()))


def judge_unit(properties: dict[str, str]) -> Check:
    """Judge the unit by what `systemctl show` says of it."""
    if properties.get("LoadState") != "loaded":
        return Check("systemd", Verdict.OK, f"has no unit {_UNIT}; {_HOW_TO}")
    active, enabled = properties.get("ActiveState", ""), properties.get("UnitFileState", "")
    seen = f"{_UNIT} is {active} and {enabled or 'not installed'}"
    if properties.get("KillMode") != "process" or properties.get("Delegate") != "yes":
        step = f"a restart would end running sandboxes: set KillMode=process and Delegate=yes, {_HOW_TO}"
        return Check("systemd", Verdict.WARN, seen, step)
    if properties.get("NeedDaemonReload") == "yes":
        step = "run `systemctl daemon-reload` and restart it"
        return Check("systemd", Verdict.WARN, f"{seen}, and its file has changed since", step)
    if active == "failed":
        return Check("systemd", Verdict.WARN, seen, f"run `journalctl -u {_UNIT}`")
    if enabled not in ("enabled", "enabled-runtime"):
        step = f"`systemctl enable {_UNIT}`, or it will not start with the machine"
        return Check("systemd", Verdict.WARN, seen, step)
    return Check("systemd", Verdict.OK, seen)
