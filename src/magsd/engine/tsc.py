"""The frequency of the host's time stamp counter, which an emulated kernel is told.

Measured once a boot of the host. A measurement that hardly differs from the
last one is that one: what was saved of a guest goes by the number that its
kernel was told.
"""

import json
from pathlib import Path
from typing import Any, Final

from magsd.engine import process
from magsd.engine.process import ProcessError
from magsd.engine.record import boot_id
from magsd.model.errors import LaunchError

_FILE: Final = "tsc.json"
_TOLERANCE: Final = 0.001
_MEASURE_S: Final = 10.0


async def tsc_khz(program: Path, directory: Path) -> int:
    """Return the frequency in kHz; `directory` keeps it. Raises `LaunchError`."""
    file = directory / _FILE
    known = _read(file)
    if known is not None and known["boot_id"] == boot_id():
        return int(known["khz"])
    khz = await _measured(program)
    if known is not None and abs(known["khz"] - khz) < _TOLERANCE * khz:
        khz = known["khz"]
    try:
        aside = directory / f".{_FILE}"
        aside.write_text(json.dumps({"boot_id": boot_id(), "khz": khz}), encoding="utf-8")
        aside.replace(file)
    except OSError as error:
        text = f"the data directory cannot be used: {error.strerror}"
        raise LaunchError(text, str(error)) from error
    return khz


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {"boot_id": str(content["boot_id"]), "khz": int(content["khz"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def _measured(program: Path) -> int:
    try:
        told = await process.run([str(program)], timeout_s=_MEASURE_S)
        khz = int(told.text)
    except (ProcessError, ValueError) as error:
        text = "the processor's clock cannot be measured: run `make setup`"
        raise LaunchError(text, f"{program}: {error}") from error
    if khz <= 0:
        raise LaunchError("this processor has no clock that a guest could be told", str(program))
    return khz
