"""The page of the documentation about settings."""

from typing import Final

from magsd.config.load import DEFAULT_FILE, FILE_VARIABLE, variable_of
from magsd.config.settings import Settings

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
    # Those that a part brings come behind.
    names = sorted(Settings.model_fields, key=lambda name: name not in Settings.__annotations__)
    for name in names:
        field = Settings.model_fields[name]
        default = field.default
        shown = f"`{default}`" if default not in (None, ()) else ""
        page += f"| `{name}` | `{variable_of(name)}` | {shown} | {field.description} |\n"
    return page
