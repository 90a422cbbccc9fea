"""A folder of results: made, or taken up where an equal call has left it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from experiments.arguments import UsageError

CONFIG = "config.json"


def take(folder: Path, settings: dict[str, Any], *, free: Collection[str] = ()) -> None:
    """Makes a folder for results of these settings; its `config.json` tells them.

    Raises UsageError where it holds results of others, but for the keys that are `free`, or can't
    be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings, indent=2) + "\n"
        check_same(folder, json.loads(text), settings.keys() - free)
        write(folder / CONFIG, text)
    except OSError as error:
        raise UsageError(f"--out={folder}: {error.strerror or error}") from None


def check_same(folder: Path, settings: dict[str, Any], keys: Iterable[str]) -> None:
    """Raises UsageError where the folder's `config.json`, if there is one, differs in `keys`."""
    file = folder / CONFIG
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file}: not JSON ({error}); remove it, or name another --out") from None
    if changed := sorted(key for key in keys if before.get(key) != settings.get(key)):
        raise UsageError(
            f"{folder} holds results of other settings ({', '.join(changed)}); "
            "choose another --out, or remove this one"
        )


def write(file: Path, text: str) -> None:
    """Writes all or nothing."""
    fresh = file.with_name(f".{file.name}.part")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, file)
