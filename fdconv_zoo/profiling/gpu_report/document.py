"""The report as data, as Markdown and as a few lines for a terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fdconv_zoo.store.files import write_text


class Document:
    """Sections with tables, notes and failures.

    Attributes:
        sections: by name; each a dictionary with ``title``, ``seconds``, ``tables`` (rows by title), ``notes`` and
            ``failures`` (``what`` and ``details``).
    """

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, str] = {}

    @property
    def _current(self) -> dict[str, Any]:
        return next(reversed(self.sections.values()))

    def start(self, name: str, title: str) -> None:
        """Begin a section."""
        self.sections[name] = {"title": title, "seconds": None, "tables": {}, "notes": [], "failures": []}

    def finish(self, seconds: float) -> None:
        """End the section, which took that long."""
        self._current["seconds"] = seconds

    def row(self, table: str, figures: Mapping[str, Any]) -> None:
        """Add a row to a table of the section."""
        self._current["tables"].setdefault(table, []).append(dict(figures))

    def note(self, text: str) -> None:
        """Add a note to the section."""
        self._current["notes"].append(text)

    def failure(self, what: str, details: str) -> bool:
        """Add a failure to the section; returns whether its details are new."""
        first = self._seen.setdefault(details, what)
        self._current["failures"].append({"what": what, "details": details if first == what else f"as in {first}"})
        return first == what

    def write(self, folder: Path) -> None:
        """Write ``report.md`` and ``report.json``."""
        write_text(folder / "report.json", json.dumps(self.sections, indent=1, default=str))
        write_text(folder / "report.md", self.markdown())

    def markdown(self) -> str:
        """The whole report."""
        parts = ["# GPU report"]
        for section in self.sections.values():
            seconds = "" if section["seconds"] is None else f" ({section['seconds']:.0f} s)"
            parts.append(f"## {section['title']}{seconds}")
            parts += section["notes"]
            for title, rows in section["tables"].items():
                parts += [f"### {title}", "\n".join(_markdown_table(rows))]
            for failure in section["failures"]:
                parts += [f"### Failure: {failure['what']}", f"```\n{failure['details'].strip()}\n```"]
        return "\n\n".join(parts) + "\n"


def summary_lines(document: Document) -> list[str]:
    """Summarize the report in lines: aligned columns, long tables cut; speed and failures last, at the end of a log."""
    lines, failures = [], []
    for name, section in sorted(document.sections.items(), key=lambda item: item[0] == "speed"):
        lines.append(f"== {section['title']} ({section['seconds']:.0f} s), {len(section['failures'])} failures")
        lines += [note[:300] for note in section["notes"]]
        most = 24 if name in ("speed", "correctness") else 12
        for title, rows in section["tables"].items():
            lines += [f"-- {title}", *_text_table(rows[:most])]
            if len(rows) > most:
                lines.append(f"   ... and {len(rows) - most} more rows")
        failures += [
            f"FAILED {failure['what'][:150]}: {_last_line(failure['details'])}" for failure in section["failures"]
        ]
    more = [f"   ... and {len(failures) - 12} more failures"] if len(failures) > 12 else []
    return lines + failures[:12] + more


def _last_line(details: str) -> str:
    return next((line for line in reversed(details.splitlines()) if line.strip()), "")[:150]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = _columns(rows)
    lines = [columns, ["---"] * len(columns)]
    lines += [[_format(row.get(column)).replace("|", "\\|") for column in columns] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _text_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = _columns(rows)
    lines = [columns, *([_format(row.get(column))[:48] for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines
    ]


def _format(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
