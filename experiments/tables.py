"""Rows of results as text: aligned columns that are Markdown as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ENDS = ("_low", "_high")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for every `part` of the rows, in their order; intervals stand behind their value."""
    parts = dict.fromkeys(row["part"] for row in rows)
    return "\n".join(
        f"## {part}\n\n{_table([row for row in rows if row['part'] == part])}" for part in parts
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for row in rows for name in row if name != "part")
    shown = [name for name in names if not name.endswith(_ENDS)]
    # What no row has is no column.
    shown = [name for name in shown if any(row.get(name) is not None for row in rows)]
    cells = [shown, *([_cell(row, name) for name in shown] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if row.get(f"{name}_low") is not None:
        text += f" [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    return text.replace("|", "/")
