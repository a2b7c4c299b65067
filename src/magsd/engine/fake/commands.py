"""What the built-in shell's commands do: a closed list, none of them a program of the host."""

import re
import signal
from collections.abc import Mapping
from typing import Final

from magsd.engine.fake import printing
from magsd.engine.fake.program import HARMLESS, Program
from magsd.engine.fake.shell import (
    USAGE,
    Command,
    ExitShell,
    LeaveLoop,
    Shell,
)
from magsd.engine.fake.syntax import ShellSyntaxError, parse
from magsd.engine.fake.words import signal_number, whole_number
from magsd.guest.state import EndCode

_SECONDS_MAX: Final = 1e9
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FAULTS: Final = {
    "out_of_memory": EndCode.OUT_OF_MEMORY,
    "too_many_processes": EndCode.TOO_MANY_PROCESSES,
    "agent_died": EndCode.AGENT_DIED,
    "engine_died": EndCode.ENGINE_DIED,
    "shim_died": EndCode.NONE,
}


async def interpret(program: Program) -> int:
    """Do what the program's arguments say; return its exit code."""
    arguments = program.arguments
    shell = Shell(program, COMMANDS, environment=program.environment, arguments=arguments[:1])
    try:
        return await shell.run_words(list(arguments))
    except RecursionError:
        await shell.complain("the script is nested too deeply")
        return USAGE


# --- what a VM is --------------------------------------------------------------------


async def _hostname(shell: Shell, words: list[str]) -> int:
    await shell.say(f"{shell.machine.hostname}\n")
    return 0


async def _id(shell: Shell, words: list[str]) -> int:
    await shell.say("0\n" if words[1:] in (["-u"], ["-g"]) else "uid=0(root) gid=0(root)\n")
    return 0


async def _nproc(shell: Shell, words: list[str]) -> int:
    await shell.say(f"{max(1, -int(-shell.machine.nature.vcpus // 1))}\n")
    return 0


async def _pwd(shell: Shell, words: list[str]) -> int:
    await shell.say(f"{shell.cwd}\n")
    return 0


async def _cd(shell: Shell, words: list[str]) -> int:
    target = words[1] if len(words) > 1 else shell.variables.get("HOME", "/")
    path = shell.place(target)
    if not shell.machine.is_folder(path):
        await shell.complain(f"cd: {target[:200]}: No such file or directory")
        return 1
    shell.cwd = path
    shell.assign("PWD", path)
    return 0


# --- the shell itself ------------------------------------------------------------------


async def _true(shell: Shell, words: list[str]) -> int:
    return 0


async def _false(shell: Shell, words: list[str]) -> int:
    return 1


async def _exit(shell: Shell, words: list[str]) -> int:
    status = whole_number(words[1], 2) if len(words) > 1 else shell.status
    raise ExitShell((status or 0) & 0xFF)


async def _break(shell: Shell, words: list[str]) -> int:
    raise LeaveLoop(for_good=True)


async def _continue(shell: Shell, words: list[str]) -> int:
    raise LeaveLoop(for_good=False)


async def _export(shell: Shell, words: list[str]) -> int:
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if _NAME.fullmatch(name) is None:
            return await shell.misused("export NAME[=VALUE]...")
        if equals:
            shell.assign(name, value)
        shell.exported.add(name)
    return 0


async def _sh(shell: Shell, words: list[str]) -> int:
    match words[1:]:
        case ["-c", script, *arguments]:
            pass
        case [name, *_] if not name.startswith("-"):
            arguments = words[1:]
            script = shell.machine.read(shell.place(name)).decode("utf-8", "surrogateescape")
        case _:
            return await shell.misused(
                "sh FILE [ARGUMENT]..., or sh -c SCRIPT [NAME [ARGUMENT]...]"
            )
    inner = shell.inner(shell.environment, tuple(arguments or ["sh"]))
    return await inner.run(script)


async def _test(shell: Shell, words: list[str]) -> int:
    arguments = words[1:]
    if words[0] == "[":
        if arguments[-1:] != ["]"]:
            return await shell.misused("[ CONDITION ]")
        arguments.pop()
    is_wanted = True
    while len(arguments) > 1 and arguments[0] == "!":
        is_wanted = not is_wanted
        arguments.pop(0)
    found = _condition(shell, arguments)
    if found is None:
        return await shell.misused("test [!] A = B, A -lt B, -n A, -f FILE and their kin")
    return int(found is not is_wanted)


def _condition(shell: Shell, arguments: list[str]) -> bool | None:
    match arguments:
        case []:
            return False
        case [text]:
            return text != ""
        case ["-n", text]:
            return text != ""
        case ["-z", text]:
            return text == ""
        case ["-f" | "-s" | "-e" | "-d" as kind, name]:
            path = shell.place(name)
            if kind == "-s":
                return shell.machine.has_file(path) and shell.machine.read(path) != b""
            is_folder = kind in ("-d", "-e") and shell.machine.is_folder(path)
            return is_folder or (kind in ("-f", "-e") and shell.machine.has_file(path))
        case [left, "=" | "==", right]:
            return left == right
        case [left, "!=", right]:
            return left != right
        case [left, kind, right]:
            return _compared(whole_number(left), kind, whole_number(right))
        case _:
            return None


def _compared(left: int | None, kind: str, right: int | None) -> bool | None:
    if left is None or right is None:
        return None
    order = (left > right) - (left < right)
    wanted = {
        "-eq": (0,),
        "-ne": (-1, 1),
        "-lt": (-1,),
        "-le": (-1, 0),
        "-gt": (1,),
        "-ge": (0, 1),
    }.get(kind)
    return None if wanted is None else order in wanted


# --- time and signals --------------------------------------------------------------------


async def _sleep(shell: Shell, words: list[str]) -> int:
    match = _DURATION.fullmatch(words[1]) if len(words) == 2 else None
    if match is None and words[1:] != ["infinity"]:
        return await shell.misused("sleep SECONDS")
    seconds = float(match[1]) * _UNITS[match[2]] if match else _SECONDS_MAX
    number = await shell.program.sleep(min(seconds, _SECONDS_MAX))
    return 128 + number if number else 0


async def _kill(shell: Shell, words: list[str]) -> int:
    arguments = words[1:]
    number: int | None = signal.SIGTERM
    if arguments and arguments[0].startswith("-"):
        number = signal_number(arguments.pop(0)[1:])
    if number is None or not arguments:
        return await shell.misused("kill [-SIGNAL] PID...")
    status = 0
    for word in arguments:
        pid = whole_number(word)
        program = shell.machine.programs.get(abs(pid or 0))
        if pid == 1:
            if number == signal.SIGKILL:
                shell.machine.end(EndCode.AGENT_DIED, "a script killed the first process")
        elif program is not None:
            program.signal(number)
        else:
            await shell.complain(f"kill: {word[:200]}: No such process")
            status = 1
    # One sent to this very program comes now.
    await shell.machine.world.clock.sleep(0)
    return status


async def _trap(shell: Shell, words: list[str]) -> int:
    numbers = [signal_number(word) for word in words[2:]]
    if not numbers or None in numbers:
        return await shell.misused("trap COMMANDS SIGNAL...")
    try:
        parse(words[1])
    except ShellSyntaxError as error:
        await shell.complain(f"trap: {error}")
        return USAGE
    program = shell.program
    for number in numbers:
        if number is None or number in HARMLESS or number == signal.SIGKILL:
            continue
        program.handlers.pop(number, None)
        program.ignored.discard(number)
        if words[1] == "":
            program.ignored.add(number)
        elif words[1] != "-":
            program.handlers[number] = words[1]
    return 0


async def _fake(shell: Shell, words: list[str]) -> int:
    machine = shell.machine
    match words[1:]:
        case ["hang"]:
            machine.hang()
        case [fault] if fault in _FAULTS:
            machine.end(_FAULTS[fault], f"the script asked for it: fake {fault}")
        case _:
            return await shell.misused(f"fake {' | '.join([*_FAULTS, 'hang'])}")
    await machine.world.clock.sleep(0)
    await machine.moving()
    return 0


COMMANDS: Final[Mapping[str, Command]] = {
    ":": _true,
    "[": _test,
    "bash": _sh,
    "break": _break,
    "cat": printing.cat,
    "cd": _cd,
    "continue": _continue,
    "echo": printing.echo,
    "exit": _exit,
    "export": _export,
    "fake": _fake,
    "false": _false,
    "flood": printing.flood,
    "hostname": _hostname,
    "id": _id,
    "kill": _kill,
    "nproc": _nproc,
    "printf": printing.printf,
    "pwd": _pwd,
    "seq": printing.seq,
    "sh": _sh,
    "sleep": _sleep,
    "test": _test,
    "trap": _trap,
    "true": _true,
}
"""Every command there is, by its name."""
