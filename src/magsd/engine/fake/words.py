"""Texts as a shell takes them: fields, numbers, names of signals. Pure functions."""

import signal


def split(pieces: list[tuple[str, bool]]) -> list[str]:
    """Return the fields of a word: it is split only where an unquoted expansion has blanks.

    An expansion to nothing is no field; quotes with nothing between them are one.
    """
    fields: list[str] = []
    held: str | None = None
    for text, is_split in pieces:
        if not is_split:
            held = (held or "") + text
            continue
        parts = text.split()
        if not parts:
            if text and held is not None:
                fields.append(held)
                held = None
            continue
        if text[0].isspace() and held is not None:
            fields.append(held)
            held = None
        parts[0] = (held or "") + parts[0]
        held = None if text[-1].isspace() else parts.pop()
        fields += parts
    return fields if held is None else [*fields, held]


def whole_number(text: str, default: int | None = None) -> int | None:
    """Return a whole number; `default` for what is none, or has more than 18 digits."""
    digits = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        return default
    return int(text)


def signal_number(word: str) -> int | None:
    """Return the number of a signal, given as such or by its name; 0 is the shell's exit."""
    name = word.upper().removeprefix("SIG")
    if name == "EXIT":
        return 0
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError:
        found = whole_number(word)
        return found if found is not None and 0 <= found <= 64 else None
