"""What a user names -> videos: files, globs, directories, JSONL manifests; annotation files."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.annotations import DataError
from data.readers import READERS, read
from data.types import Example
from experiments.arguments import UsageError

EXTENSIONS = {
    *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".webm", ".wmv"),
}
_FINGERPRINT_BYTES = 1 << 16


@dataclass(frozen=True)
class Source:
    """A video to score; `error` says why a manifest's line can't be."""

    path: str
    id: str
    error: str = ""


def find(names: Sequence[str], roots: Sequence[str] = ()) -> list[Source]:
    """The videos that the arguments name, each once, in the order in which they are named.

    A directory stands for the video files in it, a `.jsonl` file for the videos of its lines
    (`{"video": ..., "id": ...}`; `id` may be left out). A manifest's paths are relative to its
    folder and must stay below it or below one of `roots`.

    Raises UsageError for an argument that names nothing.
    """
    if not names:
        raise UsageError("name a video, a glob, a directory or a manifest (.jsonl)")
    found = {source.id: source for name in names for source in _expand(name, roots)}
    return list(found.values())


def items(
    config: dict[str, Any], key: str = "annotations", *, toy: str = "toy"
) -> tuple[list[Example], list[DataError]]:
    """What is in the annotation file that `config[key]` names, and the rows that can't be read.

    `config`: dataset, a reader's name (`data.readers`), and roots, the folders of the videos. `toy`
    is what else a dataset may be, for the error. Raises UsageError.
    """
    name, file = config["dataset"], config[key]
    if name not in READERS:
        raise UsageError(f"--config.dataset is {name!r}; choose from {toy}, {', '.join(READERS)}")
    if not file or not Path(file).exists():
        raise UsageError(f"--config.{key}={file}: no such file or folder")
    errors: list[DataError] = []
    return read(name, file, root=config["roots"], on_error=errors.append), errors


def _expand(name: str, roots: Sequence[str]) -> Iterator[Source]:
    path = Path(name)
    if path.is_dir():
        inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in EXTENSIONS]
        if not inside:
            raise UsageError(f"{name}: no video file in this directory")
        yield from (_source(str(p)) for p in inside if p.is_file())
    elif path.suffix == ".jsonl" and path.is_file():
        yield from _manifest(path, roots)
    elif path.exists():
        yield _source(name)
    else:
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UsageError(f"{name}: no such file")
        yield from (_source(match) for match in matches if Path(match).is_file())


def _source(path: str, name: str | None = None) -> Source:
    return Source(path, name or _fingerprint(path))


def _fingerprint(path: str) -> str:
    """An id that follows the file and not its folder: stem, and a hash of its size and head."""
    file = Path(path)
    digest = hashlib.blake2b(digest_size=4)
    if file.is_file():  # a pipe must not be read twice
        digest.update(str(file.stat().st_size).encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_FINGERPRINT_BYTES))
    return f"{file.stem}-{digest.hexdigest()}"


def _manifest(manifest: Path, roots: Sequence[str]) -> Iterator[Source]:
    folder = manifest.resolve().parent
    allowed = [folder, *(Path(root).resolve() for root in roots)]
    with manifest.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{manifest}:{number}"
            try:
                entry = json.loads(line)
                video, name = entry["video"], entry.get("id")
                if not isinstance(video, str) or not isinstance(name, str | None):
                    raise TypeError
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                reason = 'the line is not {"video": PATH} or {"video": PATH, "id": TEXT}'
                yield Source(place, place, reason)
                continue
            path = (folder / video).resolve()
            if not any(path.is_relative_to(root) for root in allowed):
                reason = f"{video} lies outside {folder}; name its folder in --config.roots"
                yield Source(place, name or place, reason)
            elif not path.exists():
                yield Source(str(path), name or place, "no such file")
            else:
                yield _source(str(path), name)
