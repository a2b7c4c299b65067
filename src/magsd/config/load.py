"""Where settings come from: a TOML file, and environment variables, which win over it.

A setting that nobody knows is refused: a misspelt limit must not be no limit.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from magsd.api.errors import invalid_fields
from magsd.config.settings import PREFIX, Settings
from magsd.model.errors import InvalidError

FILE_VARIABLE: Final = "MAGSD_CONFIG"
DEFAULT_FILE: Final = Path("/etc/mags/magsd.toml")


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
