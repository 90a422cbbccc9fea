"""Annotation files as rows that know their place: JSON, JSON lines, CSV and parquet.

A reader asks a row for what it needs, in the type that it needs; what is not there, or is of
another kind, is a `DataError` that names file, line and column.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".MP4")
_TABLES = (".parquet", ".jsonl", ".json", ".csv")
_PREFIX = re.compile(r"\(?([A-Z])[.):]\)?\s*")


class DataError(ValueError):
    """A place in an annotation file that is not what it should be, and how to mend it.

    `place` is a line, an item (counted from 1) or a key, "" for the file as a whole; `column` is
    "" where no single one is to blame.
    """

    def __init__(self, file: str, place: str, column: str, reason: str):
        column_text = f"column {column!r}" if column else ""
        super().__init__(f"{', '.join(filter(None, (file, place, column_text)))}: {reason}")
        self.file, self.place, self.column, self.reason = file, place, column, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return DataError, (self.file, self.place, self.column, self.reason)


class Videos:
    """Turns the video names of an annotation file into paths, and lets none of them escape.

    Folders are listed, each once, and no file is touched: a name whose file has another suffix
    than the published one (.mp4, .mkv, .webm, ...) becomes that file; a name without a file stays
    as it is, under the first folder. `allowed` are the folders below which a path must lie;
    `follow` looks at where symbolic links lead, for files that a stranger may have written.
    """

    def __init__(
        self, folders: Sequence[Path], allowed: Sequence[Path] | None = None, *, follow: bool
    ):
        place = os.path.realpath if follow else os.path.abspath
        self._follow = follow
        self._folders = [place(folder) for folder in folders]
        self._allowed = tuple(os.path.join(place(root), "") for root in allowed or folders)
        self._links: dict[str, dict[str, bool]] = {}
        self._real: dict[str, str] = {}

    def path(self, names: Sequence[str]) -> str | None:
        """The first of `names` that there is, else the first; None where one lies outside."""
        first = None
        for name in names:
            for folder in self._folders:
                path = self._in_real_folder(os.path.normpath(os.path.join(folder, name)))
                if not path.startswith(self._allowed):
                    return None
                if there := self._find(path):
                    if self._follow and self._list(os.path.dirname(there))[os.path.basename(there)]:
                        there = os.path.realpath(there)
                    return there if there.startswith(self._allowed) else None
                first = first or path
        return first

    def _in_real_folder(self, path: str) -> str:
        if not self._follow:
            return path
        folder, name = os.path.split(path)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return os.path.join(self._real[folder], name)

    def _find(self, path: str) -> str | None:
        folder, name = os.path.split(path)
        there = self._list(folder)
        if name in there:
            return path
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in VIDEO_SUFFIXES:
            stem = name
        others = (stem + suffix for suffix in VIDEO_SUFFIXES)
        return next((os.path.join(folder, other) for other in others if other in there), None)

    def _list(self, folder: str) -> dict[str, bool]:
        """The names in a folder, and whether each is a symbolic link."""
        if folder not in self._links:
            try:
                with os.scandir(folder or ".") as entries:
                    self._links[folder] = {entry.name: entry.is_symlink() for entry in entries}
            except OSError:
                self._links[folder] = {}
        return self._links[folder]


@dataclass(frozen=True)
class Row:
    """One item of an annotation file: its columns, and where it stands."""

    file: str
    place: str
    values: Mapping[str, Any]
    videos: Videos

    def fail(self, column: str, reason: str) -> NoReturn:
        raise DataError(self.file, self.place, column, reason)

    def has(self, column: str) -> bool:
        """Whether there is something in a column: neither null nor an empty text or list."""
        return self.values.get(column) not in (None, "", [])

    def first(self, *columns: str) -> str:
        """The first of several names for a column that this row has."""
        for column in columns:
            if column in self.values:
                return column
        self.fail(columns[0], f"missing; what there is: {', '.join(map(str, self.values))}")

    def text(self, column: str, default: str | None = None) -> str:
        """A text, or a number as text; stripped; never empty unless there is a default."""
        if default is not None and not self.has(column):
            return default
        value = self.values[self.first(column)]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.fail(column, f"{_short(value)} should be a text")
        if not (text := str(value).strip()):
            self.fail(column, "is empty; fill it in, or take the row out")
        return text

    def texts(self, column: str) -> tuple[str, ...]:
        """A list of texts, stripped."""
        values = self.values[self.first(column)]
        if not isinstance(values, list | tuple):
            self.fail(column, f"{_short(values)} should be a list of texts")
        if not all(isinstance(v, str | int | float) and str(v).strip() for v in values):
            self.fail(column, f"{_short(values)} should be a list of texts, none of them empty")
        return tuple(str(value).strip() for value in values)

    def options(self, column: str) -> tuple[str, ...]:
        """At least two options, without their letters."""
        options = without_letters(self.texts(column))
        if not 2 <= len(options) <= len(LETTERS):
            self.fail(column, f"{len(options)} options; a choice needs at least two of them")
        return options

    def number(self, column: str) -> float:
        """A finite number, or a text that is one."""
        return self.as_number(column, self.values[self.first(column)])

    def as_number(self, column: str, value: Any) -> float:
        try:
            if isinstance(value, bool) or not math.isfinite(number := float(value)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            self.fail(column, f"{_short(value)} should be a number")
        return number

    def numbers(self, column: str) -> list[float]:
        values = self.values[self.first(column)]
        if not isinstance(values, list | tuple):
            self.fail(column, f"{_short(values)} should be a list of numbers")
        return [self.as_number(column, value) for value in values]

    def integer(self, column: str) -> int:
        number = self.number(column)
        if number != int(number):
            self.fail(column, f"{number} should be a whole number")
        return int(number)

    def interval(
        self, column: str, value: Any, *, scale: float = 1.0, turn: bool = False
    ) -> tuple[float, float]:
        """Start and end, from two numbers times `scale`; `turn` puts a reversed pair in order."""
        if not isinstance(value, list | tuple) or len(value) != 2:
            self.fail(column, f"{_short(value)} should be [start, end]")
        start, end = (self.as_number(column, v) * scale for v in value)
        if turn:
            start, end = min(start, end), max(start, end)
        if not 0 <= start <= end:
            self.fail(column, f"{_short(value)} should rise, from 0 or later")
        return start, end

    def intervals(self, column: str) -> tuple[tuple[float, float], ...]:
        values = self.values[self.first(column)]
        if not isinstance(values, list | tuple):
            self.fail(column, f"{_short(values)} should be a list of [start, end]")
        return tuple(self.interval(column, value) for value in values)

    def inner(self, column: str) -> Row:
        """An object within this row as a row of its own."""
        return self._part(column, self.values[self.first(column)])

    def inners(self, column: str) -> list[Row]:
        """The objects in a list, which is not empty, as rows."""
        values = self.values[self.first(column)]
        if not isinstance(values, list) or not values:
            self.fail(column, f"{_short(values)} should be a list of objects")
        return [self._part(f"{column} {n}", value) for n, value in enumerate(values, 1)]

    def _part(self, place: str, value: Any) -> Row:
        columns = value if isinstance(value, dict) else {}  # whatever is asked of it is missing
        return Row(self.file, f"{self.place}, {place}".lstrip(", "), columns, self.videos)

    def plus(self, **columns: Any) -> Row:
        """This row with more columns, or other values in them."""
        return Row(self.file, self.place, {**self.values, **columns}, self.videos)

    def untagged(self, column: str) -> Row:
        """This row with what stands between answer tags alone in a column."""
        text = self.text(column)
        tagged = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
        return self.plus(**{column: tagged[1] if tagged else text})

    def video(self, column: str, *names: str) -> str:
        """The path of a video that may stand under several names; `column` is where they come from.

        Raises DataError for a path that leads out of the folder of the videos.
        """
        if any("\0" in name for name in names):
            self.fail(column, "there is a zero byte in the path")
        path = self.videos.path(names)
        if path is None:
            reason = f"{_short(names[0])} lies outside the videos' folder; name its own as root"
            self.fail(column, reason)
        return path

    def rest(self, *used: str) -> dict[str, Any]:
        """The columns that are not named, as they are."""
        return {key: value for key, value in self.values.items() if key not in used}

    def letter_at(self, column: str, options: Sequence[str]) -> str:
        """The letter of an option given by its number, from 0."""
        number = self.integer(column)
        if not 0 <= number < len(options):
            self.fail(column, f"{number} is the number of none of {len(options)} options, from 0")
        return LETTERS[number]

    def answer(self, column: str, options: Sequence[str], *, by_letter: bool = True) -> str:
        """The letter of an option given by letter ("C", "(C)", "C. text") or by its exact text.

        by_letter: "C" is the letter although some option's text is "C"; without it, an error.
        Without options the answer is the text.
        """
        answer = self.text(column)
        if not options:
            return answer
        by_text = {i for i, option in enumerate(options) if option == answer}
        lettered = set()
        for i, (letter, option) in enumerate(zip(LETTERS, options, strict=False)):
            prefix = _PREFIX.match(answer)
            if re.fullmatch(rf"\(?{letter}\)?[.:]?", answer) or (
                prefix and prefix[1] == letter and answer[prefix.end() :] == option
            ):
                lettered.add(i)
        found = (lettered & by_text) or (lettered if lettered and by_letter else lettered | by_text)
        if len(found) == 1:
            return LETTERS[found.pop()]
        problem = "means several" if found else "is none"
        self.fail(column, f"{_short(answer)} {problem} of the options {_short(list(options))}")

    def letter_of_text(self, column: str, options: Sequence[str]) -> str:
        """The letter of an option given by its exact text, which only one option may have."""
        answer = self.text(column)
        if options.count(answer) != 1:
            problem = "is several" if answer in options else "is none"
            self.fail(column, f"{_short(answer)} {problem} of the options {_short(list(options))}")
        return LETTERS[options.index(answer)]


Rows = Iterator[Row | DataError]
"""The rows of a dataset; one that can't be read comes as the error itself."""


def without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Options without "A. ", "(A) " or "A: " in front, where they are lettered in order.

    An option that only looks like it keeps its words: "A dog", or ten options that all begin
    with "A: $3,616".
    """
    found = [_PREFIX.match(option) for option in options]
    lettered = "".join(match[1] if match else "-" for match in found)
    if len(options) < 2 or lettered != LETTERS[: len(options)]:
        return tuple(options)
    bare = tuple(option[match.end() :] for option, match in zip(options, found, strict=True))
    return bare if all(bare) else tuple(options)


def table(path: Path, videos: Videos) -> Rows:
    """The rows of a file (.jsonl, .json, .csv, .parquet), or of the files in a directory.

    Raises DataError where a whole file can't be read.
    """
    for file in files(path):
        for place, values in _READ[file.suffix.lower()](file):
            if isinstance(values, dict):
                yield Row(str(file), place, values, videos)
            else:
                reason = f"{_short(values)} is not an object with named columns"
                yield DataError(str(file), place, "", reason)


def files(path: Path) -> list[Path]:
    """The file itself, or the annotation files of one kind in a directory, by name."""
    if path.is_dir():
        for suffix in _TABLES:
            if inside := sorted(path.glob(f"*{suffix}")):
                return inside
        raise DataError(str(path), "", "", f"no file in it ends in {', '.join(_TABLES)}")
    if not path.is_file():
        raise DataError(str(path), "", "", "no such file")
    if path.suffix.lower() not in _READ:
        raise DataError(str(path), "", "", f"not a kind that is read here: {', '.join(_TABLES)}")
    return [path]


def document(path: Path) -> Any:
    """What a JSON file holds, as Python has it. Raises DataError."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place, reason = f"line {error.lineno}", error.msg
    except RecursionError:
        place, reason = "", "nested too deeply"
    raise DataError(str(path), place, "", f"not JSON: {reason}; fetch the file again") from None


def keyed(path: Path, videos: Videos, name: str) -> Rows:
    """The rows of a JSON object {key: {column: value}}; the key becomes the column `name`."""
    for key, values in mapping(path).items():
        if isinstance(values, dict):
            yield Row(str(path), f"key {key!r}", {name: key, **values}, videos)
        else:
            yield DataError(str(path), f"key {key!r}", "", f"{_short(values)} should be an object")


def unfolded(path: Path, videos: Videos, name: str, items: Callable[[Row], Rows]) -> Rows:
    """The rows of tables; of a JSON object {key: value}, those that `items` makes of each value."""
    for file in files(path):
        if file.suffix != ".json" or not isinstance(document(file), dict):
            yield from table(file, videos)
            continue
        for row in keyed(file, videos, name):
            try:
                yield from [row] if isinstance(row, DataError) else items(row)
            except DataError as error:
                yield error


def mapping(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises DataError."""
    values = document(path)
    if not isinstance(values, dict):
        raise DataError(str(path), "", "", "should be a JSON object with a key for each item")
    return values


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Items of a JSON list; a file of JSON lines may end in .json, as some published ones do."""
    try:
        values = document(path)
    except DataError:
        head = read_text(path).lstrip().partition("\n")[0]
        if not (head.startswith("{") and head.rstrip().endswith("}")):
            raise
        yield from _read_lines(path)
        return
    if isinstance(values, dict):
        values = [values]
    if not isinstance(values, list):
        raise DataError(str(path), "", "", "should be a JSON list with an object for each item")
    yield from ((f"item {number}", value) for number, value in enumerate(values, 1))


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"line {number}", line


def _read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        for row in reader:
            whole = None not in row and None not in row.values()
            yield f"line {reader.line_num}", row if whole else list(row.values())
    except csv.Error as error:
        raise DataError(str(path), f"line {reader.line_num}", "", str(error)) from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield f"row {number}", values
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"not a parquet file: {' '.join(str(error).split())}; fetch the file again"
        raise DataError(str(path), "", "", reason) from None


_READ = {
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def read_text(path: Path) -> str:
    """The text of a file. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(str(path), "", "", (error.strerror or str(error)).lower()) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(str(path), f"line {line}", "", "not UTF-8 text") from None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f'"{text}"' if isinstance(value, str) else text
