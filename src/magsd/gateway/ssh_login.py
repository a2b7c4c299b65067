"""What a login is: the shell, the environment, what a client may add, and how a command ended.

Plain decisions about what a client or a guest says; both may say anything.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from magsd.guest.wire import PAYLOAD_MAX
from magsd.model.errors import TooLargeError

USER: Final = "root"
HOME: Final = "/root"
PASSWD: Final = "/etc/passwd"  # noqa: S105 - a path
PASSWD_MAX_BYTES: Final = 64 * 1024
DEFAULT_SHELL: Final = "/bin/sh"
_SHELL_MAX: Final = 255
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_VARIABLES_MAX: Final = 32
_VARIABLE_MAX_BYTES: Final = 1024
_FIELD_BYTES: Final = 8
"""More than a field's name and its end have."""
_FIELDS_MAX_BYTES: Final = PAYLOAD_MAX - 8192
"""The rest is for the terminal."""
_TERM_MAX: Final = 64
_SIDE_MAX: Final = 0xFFFF
"""The kernel keeps columns and rows in 16 bits each."""

_STANDARD_SIGNALS: Final = (
    *("ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL"),
    *("PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"),
)
"""Those that RFC 4254 has names for."""
_SIGNALS: Final = {
    name: signal.Signals[f"SIG{name}"]
    for name in (*_STANDARD_SIGNALS, "CONT", "STOP", "TSTP", "WINCH")
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, as SSH says it."""

    exit_code: int
    signal: str = ""
    """The name of the signal that ended it, without SIG; empty when it exited by itself."""
    has_dumped_core: bool = False


def shell_of(passwd: bytes) -> str:
    """Return root's shell as a guest's `/etc/passwd` has it, `/bin/sh` when it has none."""
    for line in passwd.splitlines():
        fields = line.split(b":")
        if len(fields) == 7 and fields[0] == USER.encode():
            shell = os.fsdecode(fields[6].strip())
            is_fit = shell.startswith("/") and len(shell) <= _SHELL_MAX and "\0" not in shell
            return shell if is_fit else DEFAULT_SHELL
    return DEFAULT_SHELL


def arguments(shell: str, command: str | None) -> tuple[Sequence[str], str]:
    """Return what is run, a command by the shell or the shell itself, and by what name.

    A shell whose name begins with `-` is a login shell; an empty one is the program's own.
    """
    if command is not None:
        return (shell, "-c", command), ""
    return (shell,), f"-{shell.rpartition('/')[2]}"


def check_size(argv: Sequence[str], variables: Mapping[str, str]) -> None:
    """Raise `TooLargeError` when a command and its variables do not fit into one frame."""
    texts = [*argv, *(f"{name}={value}" for name, value in variables.items())]
    size = sum(len(text.encode("utf-8", "surrogateescape")) + _FIELD_BYTES for text in texts)
    if size > _FIELDS_MAX_BYTES:
        raise TooLargeError(
            "command and environment have 56 KiB together: send a long script as the input of `sh -s`"
        )


def environment(
    of_job: Mapping[str, str],
    of_client: Mapping[str, str],
    *,
    shell: str,
    terminal: str | None,
    connection: str,
) -> dict[str, str]:
    """Return the variables of a login.

    The job's count more than what a login sets, but for the shell and the
    terminal, which are facts. `connection` is what `SSH_CONNECTION` says:
    client, its port, server, its port.
    """
    known = {"HOME": HOME, "USER": USER, "LOGNAME": USER, "PATH": _DEFAULT_PATH}
    facts = {"SHELL": shell, "SSH_CONNECTION": connection}
    client, port, _, server_port = connection.split(" ")
    facts["SSH_CLIENT"] = f"{client} {port} {server_port}"
    if terminal is not None:
        facts["TERM"] = terminal
    return {**known, **of_job, **of_client, **facts}


def may_set(name: bytes, value: bytes, held: int) -> bool:
    """Say whether a client may set a variable beside `held` others: its language, no more."""
    is_language = name == b"LANG" or name.startswith(b"LC_")
    is_plain = b"=" not in name and b"\0" not in name + value
    is_small = len(name) + len(value) <= _VARIABLE_MAX_BYTES and held < _VARIABLES_MAX
    return is_language and is_plain and is_small


def terminal_type(name: str) -> str | None:
    """Return what TERM may be for what a client calls its terminal, None for nonsense."""
    if not name:
        return "dumb"
    return name if len(name) <= _TERM_MAX and name.isprintable() and " " not in name else None


def terminal_modes(modes: Mapping[int, int]) -> bytes:
    """Return the modes of a terminal as they were on the way."""
    pairs = (bytes([mode]) + value.to_bytes(4, "big") for mode, value in modes.items())
    return b"".join(pairs) + b"\0"


def terminal_size(columns: int, rows: int) -> tuple[int, int]:
    """Return the columns and rows of a terminal as its kernel can hold them."""
    return min(columns, _SIDE_MAX), min(rows, _SIDE_MAX)


def signal_number(name: str) -> int | None:
    """Return the signal that a client means by a name without SIG, None for none."""
    return _SIGNALS.get(name)


def ended(wait_status: int) -> Ended:
    """Return how a program ended that has a wait status."""
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        try:
            name = signal.Signals(number).name.removeprefix("SIG")
        except ValueError:
            name = str(number)
        if name not in _STANDARD_SIGNALS:
            name += "@openssh.com"
        return Ended(128 + number, name, os.WCOREDUMP(wait_status))
    return Ended(os.WEXITSTATUS(wait_status))
