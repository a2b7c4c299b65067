"""Exit codes of the command, beside those of scripts and commands that it runs."""

from typing import Final

EXIT_REFUSED: Final = 1
EXIT_NOT_LOGGED_IN: Final = 3
EXIT_NOT_FOUND: Final = 4
EXIT_UNREACHABLE: Final = 5
EXIT_INTERRUPTED: Final = 130
