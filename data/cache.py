"""Caches of slow answers, as JSONL: a line an answer, appended whole, read back after any end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest(*parts: Any) -> str:
    """16 hex digits that differ for different parts, which must be plain JSON values."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a cache; none where there is no file.

    A last line that an interruption left without its end is passed over (`append` cuts it off).
    Raises ValueError, with file and line, for a line that is no JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: no JSON object; mend or remove the line")
        records.append(record)
    return records


def append(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> None:
    """Adds records, one line each, and sees them onto the disk. One writer at a time."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
