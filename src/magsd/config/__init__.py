"""What the operator decides. The only package that reads files or the environment for it;
everything else is given values."""

from magsd.config.load import DEFAULT_FILE, FILE_VARIABLE, load, variable_of
from magsd.config.reference import reference
from magsd.config.settings import PREFIX, Settings
from magsd.config.values import Bind

__all__ = [
    "DEFAULT_FILE",
    "FILE_VARIABLE",
    "PREFIX",
    "Bind",
    "Settings",
    "load",
    "reference",
    "variable_of",
]
