"""Tables, as text for a terminal and as Markdown for the documentation."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table; the first column is text, what begins with a digit is set to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """A sentence below it."""

    def text(self) -> str:
        """Return it for a terminal."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        is_number = [self._is_number(i) for i in range(len(self.columns))]
        shown = [self.title]
        for line in lines:
            cells = [
                f"{cell:>{width}}" if right else f"{cell:{width}}"
                for cell, width, right in zip(line, widths, is_number, strict=True)
            ]
            shown.append(("  " + "  ".join(cells)).rstrip())
        return "\n".join([*shown, *([f"  {self.note}"] if self.note else [])]) + "\n"

    def markdown(self) -> str:
        """Return it for the documentation."""
        rule = ["--:" if self._is_number(i) else "---" for i in range(len(self.columns))]
        lines = [self.columns, rule, *self.rows]
        shown = ["| " + " | ".join(cell or " " for cell in line) + " |" for line in lines]
        note = ["", self.note] if self.note else []
        return "\n".join([f"**{self.title}**", "", *shown, *note]) + "\n"

    def _is_number(self, column: int) -> bool:
        cells = [row[column] for row in self.rows]
        return column > 0 and all(cell[:1].isdigit() or cell[:1] in ("", "-") for cell in cells)
