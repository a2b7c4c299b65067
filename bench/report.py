"""What a run has found: tables as they come, the table of goals at the end, every sample in a file.

A row says what was measured and whether that meets the goal; what could not be
measured is a row that says why.
"""

import json
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from bench.goals import GOALS
from bench.table import Table

RESULTS: Final = Path(__file__).parent / "results"


class Verdict(StrEnum):
    """What a measurement says of a goal."""

    MET = "met"
    MISSED = "missed"
    NOT_MEASURED = "not measured"

    @classmethod
    def of(cls, is_met: bool) -> "Verdict":
        """Return the verdict on a goal that was measured."""
        return cls.MET if is_met else cls.MISSED


class Report:
    """One run's findings."""

    def __init__(self, about: Mapping[str, Any], *, is_markdown: bool) -> None:
        self._is_markdown = is_markdown
        self._rows: dict[tuple[str, str], tuple[str, str, Verdict]] = {}
        self._raw: dict[str, Any] = {"machine": about}

    def of(self, engine: str) -> "Findings":
        """Return what notes findings about one engine."""
        return Findings(self, engine)

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def show(self, table: Table) -> None:
        """Print a table."""
        print(table.markdown() if self._is_markdown else table.text(), flush=True)

    def keep(self, name: str, content: Any, engine: str = "") -> None:
        """Keep samples for the file."""
        place = self._raw.setdefault(engine, {}) if engine else self._raw
        place[name] = content

    def note(self, key: str, engine: str, measured: str, n: str, verdict: Verdict) -> None:
        """Note what became of a goal with an engine. Raises `KeyError` when it has none."""
        GOALS[key].target_of(engine)
        self._rows[key, engine] = (measured, n, verdict)

    def goals(self, title: str) -> Table:
        """Return the table of goals; those that no part looked at are left out."""
        rows = [
            (goal.number, engine, goal.what, goal.target_of(engine), measured, n, verdict.value)
            for key, goal in GOALS.items()
            for (found, engine), (measured, n, verdict) in self._rows.items()
            if found == key
        ]
        return Table(title, ("#", "engine", "what", "goal", "measured", "n", "verdict"), rows)

    def save(self) -> Path:
        """Keep all samples; return where."""
        RESULTS.mkdir(exist_ok=True)
        self._raw["goals"] = [
            {"key": key, "engine": engine, "measured": measured, "n": n, "verdict": verdict}
            for (key, engine), (measured, n, verdict) in self._rows.items()
        ]
        path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
        path.write_text(json.dumps(self._raw, indent=1) + "\n", encoding="utf-8")
        return path


class Findings:
    """A report, for what is found with one engine."""

    def __init__(self, report: Report, engine: str) -> None:
        self._report = report
        self._engine = engine

    def of(self, engine: str) -> "Findings":
        """Return the same for another engine."""
        return self._report.of(engine)

    def say(self, text: str) -> None:
        """Print a line."""
        self._report.say(f"{self._engine}: {text}")

    def show(self, table: Table) -> None:
        """Print a table."""
        title = f"{self._engine}: {table.title}"
        self._report.show(Table(title, table.columns, table.rows, table.note))

    def keep(self, name: str, content: Any) -> None:
        """Keep samples for the file."""
        self._report.keep(name, content, self._engine)

    def limit(self, key: str) -> float | None:
        """Return the number that the goal `key` sets this engine; None where it sets none."""
        return GOALS[key].limits.get(self._engine)

    def found(self, key: str, measured: str, n: int | str, *, is_met: bool) -> None:
        """Note what was measured of the goal `key`."""
        self._report.note(key, self._engine, measured, str(n), Verdict.of(is_met))

    def lacks(self, key: str, why: str) -> None:
        """Note why a goal was not measured; nothing where this engine has no such goal."""
        if not GOALS[key].limits or self.limit(key) is not None:
            self._report.note(key, self._engine, why, "", Verdict.NOT_MEASURED)
