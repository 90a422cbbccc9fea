"""`saccade validate`: what is missing or broken in a dataset, before a long run finds it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from data.annotations import LETTERS, DataError
from data.readers import READERS, read
from data.types import Example
from data.video import Decoder, VideoError, VideoInfo
from experiments.arguments import Parser, UsageError
from experiments.progress import Progress
from experiments.sources import EXTENSIONS

log = logging.getLogger(__name__)

USAGE = "MANIFEST|DIR|NAME:PATH [--root=DIR] [--out=DIR] [--timeout=60] [--workers=N]"
_SAME = "same content"  # a warning: it does not change the exit status
_MANIFESTS = (".jsonl", ".json", ".csv", ".parquet")
_MAGIC = (b"ftyp", b"\x1a\x45\xdf\xa3", b"RIFF", b"OggS", b"FLV")  # a container's first bytes
_HEAD_BYTES = 1 << 16


class Problem(NamedTuple):
    """Something that is wrong with an item; a line of `problems.jsonl`."""

    video: str
    id: str
    check: str
    error: str


def main(argv: Sequence[str]) -> int:
    about = f"Writes problems.jsonl to --out. NAME is one of: {', '.join(READERS)}."
    parser = Parser("validate", USAGE, about)
    parser.add_argument("dataset", help="a manifest, a directory of videos, or NAME:PATH")
    parser.add_argument("--root", action="append", help="folder of the videos; may be repeated")
    parser.add_argument("--out", default="runs/validate", help="folder of the results")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a decoder")
    workers = min(os.cpu_count() or 1, 16)
    parser.add_argument("--workers", type=int, default=workers, help="decoders at a time")
    found = parser.parse(argv)
    return run(
        found.dataset,
        roots=found.root or (),
        out=found.out,
        timeout=found.timeout,
        workers=found.workers,
    )


def run(dataset: str, *, roots: Sequence[str], out: str, timeout: float, workers: int) -> int:
    """Checks every item and every file of a dataset, prints a table and writes problems.jsonl.

    Returns 0, or 1 where there are problems; the same content under two names is only a warning.
    Raises UsageError before any work is done.
    """
    if timeout <= 0 or workers < 1:
        raise UsageError(f"--timeout={timeout:g} and --workers={workers} must be positive")
    for root in roots:
        if not Path(root).is_dir():
            raise UsageError(f"--root={root}: no such directory")
    file = _output(out)
    examples, problems = items(dataset, roots)
    users: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        users[example.video].append(example)
    problems += repeated_ids(examples)
    problems += [problem for example in examples for problem in unanswerable(example)]

    paths = list(users)
    with ExitStack() as stack:
        decoders: SimpleQueue[Decoder] = SimpleQueue()
        for _ in range(min(workers, len(paths))):
            decoders.put(stack.enter_context(Decoder(timeout=timeout)))
        pool = ThreadPoolExecutor(max_workers=workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        checked = pool.map(lambda path: check_file(path, decoders), paths)
        progress = stack.enter_context(Progress(len(paths), "file"))
        for path, outcome in zip(paths, checked, strict=True):
            for example in users[path]:
                if isinstance(outcome, VideoInfo):
                    problems += mismatches(example, outcome)
                else:
                    problems.append(Problem(path, example.id, *outcome))
            progress.add()
    problems += same_content(users)

    lines = (json.dumps(problem._asdict(), ensure_ascii=False) for problem in problems)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    sys.stdout.write(table(problems) + _summary(len(examples), len(paths), problems))
    return int(any(problem.check != _SAME for problem in problems))


def items(dataset: str, roots: Sequence[str]) -> tuple[list[Example], list[Problem]]:
    """The items that can be read, and the rows that can't. Raises UsageError."""
    problems: list[Problem] = []

    def tell(error: DataError) -> None:
        problems.append(Problem("", error.place, "annotation", str(error)))

    name, colon, place = dataset.partition(":")
    path = Path(dataset)
    if colon and not path.exists():
        if name not in READERS:
            raise UsageError(f"no dataset {name!r}; choose from {', '.join(READERS)}")
        if not Path(place).exists():
            raise UsageError(f"{place}: no such file or directory")
        return read(name, place, root=roots, on_error=tell), problems
    if path.suffix.lower() in _MANIFESTS and path.is_file():
        return read("manifest", path, root=roots, on_error=tell), problems
    if path.is_dir():
        inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in EXTENSIONS]
        if not inside:
            raise UsageError(f"{dataset}: no video in this directory; a dataset is NAME:{dataset}")
        return [Example(id=str(p.relative_to(path)), video=str(p)) for p in inside], problems
    kinds = ", ".join(_MANIFESTS)
    raise UsageError(f"{dataset}: no directory of videos, and no manifest ({kinds})")


def check_file(path: str, decoders: SimpleQueue[Decoder]) -> VideoInfo | tuple[str, str]:
    """Facts of a file whose first, middle and last frame can be decoded, or (check, error)."""
    try:
        if not os.path.exists(path):
            return "missing", "no such file"
        if not os.path.isfile(path):
            return "unreadable", "not a file"
        if not os.path.getsize(path):
            return "empty", "the file has no bytes"
        with open(path, "rb") as stream:
            head = stream.read(16)
    except OSError as error:
        return "unreadable", (error.strerror or str(error)).lower()
    decoder = decoders.get()
    try:
        info = decoder.info(path)
        last = info.frame_count - 1
        size = (max(info.height // 8, 1), max(info.width // 8, 1))  # no need to send whole frames
        decoder.frames(path, [0, last // 2, last], size=size)
        return info
    except VideoError as error:
        return _kind(error, head), error.reason
    finally:
        decoders.put(decoder)


def _kind(error: VideoError, head: bytes) -> str:
    """The check that a file has failed, in one word or two."""
    if error.stage == "timeout":
        return "timeout"
    if "no video stream" in error.reason:
        return "no video"
    if "no frames" in error.reason:
        return "zero length"
    is_container = any(magic in head for magic in _MAGIC)
    if "cut short" in error.reason and (is_container or "not a video" not in error.reason):
        return "truncated"
    return "undecodable" if error.stage == "decode" else "unreadable"


def repeated_ids(examples: Iterable[Example]) -> Iterator[Problem]:
    """Items whose id another item had before."""
    first: dict[str, Example] = {}
    for example in examples:
        before = first.setdefault(example.id, example)
        if before is not example:
            yield Problem(example.video, example.id, "duplicate", f"id also of {before.video}")


def unanswerable(example: Example) -> Iterator[Problem]:
    """What makes a question with options one that can't be asked or graded."""
    letters = tuple(LETTERS[: len(example.options)])
    if example.options and not example.question:
        yield Problem(example.video, example.id, "question", "empty, and yet there are options")
    if example.options and example.answer and example.answer not in letters:
        error = f"{example.answer!r} is none of {', '.join(letters)}"
        yield Problem(example.video, example.id, "answer", error)


def mismatches(example: Example, info: VideoInfo) -> Iterator[Problem]:
    """Where an item and its video disagree: times, frame rate, frame count, duration.

    Annotations round and files are encoded again: up to 1% or half a second (or two frames) of
    time and count, and 5% or a second of a `duration`, are no mismatch.
    """

    def problem(check: str, error: str) -> Problem:
        return Problem(example.video, example.id, check, error)

    end = info.seconds + max(0.5, 0.01 * info.seconds)
    length = f"the video has {info.seconds:.2f} s"
    if example.span and (example.span[0] >= info.seconds or example.span[1] > end):
        yield problem("span", f"{_times(example.span)}, and {length}")
    for event in example.events:
        if event[1] > end:
            yield problem("event", f"{_times(event)}, and {length}")
    count, fps = _number(example, "frame_count"), _number(example, "fps")
    if count is not None and abs(count - info.frame_count) > max(2, 0.01 * info.frame_count):
        yield problem("frame_count", f"{count:g}, and the video has {info.frame_count}")
    if fps is not None and abs(fps / info.fps - 1) > 0.01:
        yield problem("fps", f"{fps:g}, and the video has {info.fps:g}")
    seconds = _number(example, "duration")
    if seconds is not None and abs(seconds - info.seconds) > max(1, 0.05 * info.seconds):
        yield problem("duration", f"{seconds:g} s, and {length}")


def _number(example: Example, column: str) -> float | None:
    """A column of the annotation as a number; some sets have words there, as `short`."""
    try:
        return float(example.extra[column])
    except (KeyError, TypeError, ValueError):
        return None


def _times(span: tuple[float, float]) -> str:
    return f"{span[0]:g} to {span[1]:g} s"


def same_content(users: dict[str, list[Example]]) -> Iterator[Problem]:
    """A warning for each file with the bytes of another; only equal sizes, then heads, are read."""
    paths = [path for path in users if os.path.isfile(path) and os.path.getsize(path)]
    groups = [paths]
    for key in (os.path.getsize, lambda path: _digest(path, _HEAD_BYTES), _digest):
        alike: dict[object, list[str]] = defaultdict(list)
        for number, group in enumerate(groups):
            for path in group:
                alike[number, key(path)].append(path)
        groups = [group for group in alike.values() if len(group) > 1]
    for first, *others in groups:
        for path in others:
            error = f"warning: the same bytes as {first}"
            yield Problem(path, users[path][0].id, _SAME, error)


def _digest(path: str, head: int | None = None) -> str:
    """A hash of a file's first bytes, or of them all; its name where it can't be read."""
    try:
        with open(path, "rb") as stream:
            if head is not None:
                return hashlib.blake2b(stream.read(head)).hexdigest()
            return hashlib.file_digest(stream, "blake2b").hexdigest()
    except OSError:
        return path


def table(problems: Sequence[Problem]) -> str:
    """The problems in aligned columns, "" where there are none."""
    if not problems:
        return ""
    rows = [("check", "id", "video", "error")]
    rows += [(p.check, p.id, p.video, " ".join(p.error.split())) for p in problems]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ("  ".join((*map(str.ljust, row, widths), row[3])).rstrip() for row in rows)
    return "\n".join(lines) + "\n\n"


def _summary(items: int, files: int, problems: Sequence[Problem]) -> str:
    counts = Counter(problem.check for problem in problems)
    found = ", ".join(f"{number} {check}" for check, number in counts.most_common())
    return f"{items} items, {files} files: {found or 'no problem found'}\n"


def _output(out: str) -> Path:
    file = Path(out) / "problems.jsonl"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    except OSError as error:
        raise UsageError(f"--out={out}: {error.strerror or error}") from None
    return file
