"""The built-in shell's commands that print."""

import re
from collections.abc import AsyncIterator
from typing import Final

from magsd.engine.fake.shell import Shell
from magsd.engine.fake.words import whole_number

_PIECE_BYTES: Final = 64 << 10
_NUMBERS_AT_ONCE: Final = 1000
_CONVERSION: Final = re.compile(r"%(?:%|([-0+ ]*)(\d{0,4})(?:\.(\d{1,4}))?([sdiuxXobc]))")
_ESCAPE: Final = re.compile(r"\\(?:([abfnrtv\\])|([0-7]{1,3}))")
_ESCAPED: Final = dict(zip("abfnrtv\\", "\a\b\f\n\r\t\v\\", strict=True))


async def echo(shell: Shell, words: list[str]) -> int:
    """Print the words."""
    has_end = words[1:2] != ["-n"]
    await shell.say(" ".join(words[1 if has_end else 2 :]) + ("\n" if has_end else ""))
    return 0


async def printf(shell: Shell, words: list[str]) -> int:
    """Print by a layout."""
    if len(words) < 2:
        return await shell.misused("printf FORMAT [ARGUMENT]...")
    layout, arguments = _unescaped(words[1]), words[2:]
    while True:
        left = len(arguments)
        await shell.say(_formatted(layout, arguments))
        await shell.machine.step()
        if not arguments or len(arguments) == left:
            return 0


def _formatted(layout: str, arguments: list[str]) -> str:
    """Return the layout with its conversions filled in; what they use is taken off `arguments`."""

    def fill(match: re.Match[str]) -> str:
        flags, width, precision, kind = match.groups()
        if kind is None:
            return "%"
        argument = arguments.pop(0) if arguments else ""
        places = f".{precision}" if precision else ""
        if kind in "sbc":
            text = argument[:1] if kind == "c" else argument
            text = _unescaped(text) if kind == "b" else text
            left = "-" if "-" in flags else ""
            return f"%{left}{width}{places}s" % text
        kind = "d" if kind in "iu" else kind
        return f"%{flags}{width}{places}{kind}" % whole_number(argument, 0)

    return _CONVERSION.sub(fill, layout)


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        if match[1]:
            return _ESCAPED[match[1]]
        code = int(match[2], 8) & 0xFF
        # A byte above 127 stands alone, as it would in a file's name.
        return chr(code if code < 0x80 else 0xDC00 + code)

    return _ESCAPE.sub(character, text)


async def seq(shell: Shell, words: list[str]) -> int:
    """Print numbers."""
    numbers = [whole_number(word) for word in words[1:]]
    if not 1 <= len(numbers) <= 3 or None in numbers:
        return await shell.misused("seq [FIRST [STEP]] LAST, in whole numbers")
    given = [number for number in numbers if number is not None]
    first, last = (1 if len(given) == 1 else given[0]), given[-1]
    step = given[1] if len(given) == 3 else 1
    if step == 0:
        return await shell.misused("seq [FIRST [STEP]] LAST, with a STEP that is not 0")
    every = range(first, last + (1 if step > 0 else -1), step)
    at = 0
    # Not by `len`, which a long one has none of.
    while piece := every[at : at + _NUMBERS_AT_ONCE]:
        await shell.say("".join(f"{number}\n" for number in piece))
        await shell.machine.step()
        at += _NUMBERS_AT_ONCE
    return 0


async def flood(shell: Shell, words: list[str]) -> int:
    """Print so many bytes."""
    count = whole_number(words[1]) if len(words) == 2 else None
    if count is None or count < 0:
        return await shell.misused("flood BYTES")
    lines = (b"%063d\n" % 0) * (_PIECE_BYTES // 64)
    while count > 0:
        await shell.machine.step()
        await shell.sinks[1].write(lines[: min(count, _PIECE_BYTES)])
        count -= _PIECE_BYTES
    return 0


async def cat(shell: Shell, words: list[str]) -> int:
    """Print files, or what comes in."""
    status = 0
    for name in words[1:] or ["-"]:
        try:
            async for data in _content(shell, name):
                await shell.machine.step()
                await shell.sinks[1].write(data)
        except OSError as error:
            await shell.complain(f"cat: {name[:200]}: {error.strerror}")
            status = 1
    return status


async def _content(shell: Shell, name: str) -> AsyncIterator[bytes]:
    if name == "-" and shell.input_path is None:
        while shell.program.input is not None and (data := await shell.program.input.read()):
            yield data
        return
    path = shell.input_path if name == "-" else shell.place(name)
    if path in (None, "/dev/null"):
        return
    content = shell.machine.read(path)
    for at in range(0, len(content), _PIECE_BYTES):
        yield content[at : at + _PIECE_BYTES]
