"""An output folder of `saccade score`: what is kept, what has failed, pictures and report."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.video import Decoder, VideoError
from experiments.arguments import UsageError
from experiments.outputs import CONFIG, check_same, write
from experiments.sources import Source
from surprise import Trace

log = logging.getLogger(__name__)

UNTRAINED = (
    "The model has random weights: its words mean nothing, and so does its surprise. "
    "What this run shows is the path from a video file to a trace."
)


_PARTS = "parts"
_FINISHED = "finished"
_TELL_SECONDS = 30.0


class Folder:
    """An output directory, or one process's part of it: whole lines only, no video twice."""

    def __init__(self, path: Path, traces: dict[str, dict], finished: set[str]):
        self.path, self.traces, self.failed = path, traces, 0
        self.finished = finished
        """Ids that need not be scored: those of `traces`, and of other processes' parts."""

    @classmethod
    def open(
        cls, out: str, config: dict[str, Any], *, shaped_by: Sequence[str], part: str = ""
    ) -> Folder:
        """Makes the directory, or takes up what an equal call has left in it.

        Calls are equal where they agree on the keys `shaped_by`, which decide the numbers.
        """
        whole = Path(out)
        path = whole / _PARTS / part if part else whole
        try:
            path.mkdir(parents=True, exist_ok=True)
            finished = set()
            for there in [whole, *(whole / _PARTS).glob("*")]:
                if done := _read_traces(there / "trace.jsonl"):
                    check_same(there, config, shaped_by)
                    finished |= done.keys()
            write(path / CONFIG, json.dumps(config, indent=2) + "\n")
            (path / _FINISHED).unlink(missing_ok=True)
            (path / "failures.jsonl").write_text("")  # what failed before is tried again
            return cls(path, _read_traces(path / "trace.jsonl"), finished)
        except OSError as error:
            raise UsageError(f"--out={out}: {error.strerror or error}") from None

    def keep(self, trace: Trace) -> None:
        line = trace.to_line()
        _append(self.path / "trace.jsonl", line)
        self.traces[trace.id] = json.loads(line)

    def fail(self, video: Source, stage: str, error: str) -> None:
        self.failed += 1
        error = " ".join(error.split())
        log.warning("%s: %s", video.path, error)
        record = {"video": video.path, "id": video.id, "stage": stage, "error": error}
        _append(self.path / "failures.jsonl", json.dumps(record))

    def finish(self) -> int:
        """Marks this process's part as done, so that it can be merged; returns `status`."""
        (self.path / _FINISHED).touch()
        return self.status()

    def wait_for_others(self) -> None:
        """Returns when every other process's part is finished, in the folder that all share."""
        count = int(self.path.name.split("-of-")[1])
        names = {f"{i:05d}-of-{count:05d}" for i in range(count)}
        told = 0.0
        while left := {n for n in names if not (self.path.parent / n / _FINISHED).exists()}:
            if time.monotonic() - told > _TELL_SECONDS:
                log.info("waiting for %s; one that has died can be started again", _listed(left))
                told = time.monotonic()
            time.sleep(0.5)

    def status(self) -> int:
        """Says what there is; 0, or 1 where a video failed."""
        log.info("%d traces in %s", len(self.traces), self.path / "trace.jsonl")
        if self.failed:
            log.warning("%d failed, listed in %s", self.failed, self.path / "failures.jsonl")
        return 1 if self.failed else 0

    def pictures(self, timeout: float) -> None:
        """A picture of every trace that has none yet."""
        from experiments.report import figure

        pictures = self.path / "pictures"
        pictures.mkdir(exist_ok=True)
        with Decoder(timeout=timeout) as decoder:
            for name, trace in self.traces.items():
                path = pictures / f"{_file_name(name)}.png"
                if not path.exists():
                    figure(trace, _thumbnails(trace, decoder), path)

    def report(self, timeout: float) -> None:
        from experiments.report import html

        failures = _read_lines(self.path / "failures.jsonl")
        traces = list(self.traces.values())
        trained = all(trace["settings"]["run"]["trained"] for trace in traces)
        note = "" if trained else UNTRAINED
        with Decoder(timeout=timeout) as decoder:
            thumbnails = (_thumbnails(trace, decoder) for trace in traces)
            html(traces, thumbnails, failures, self.path / "report.html", note=note)


def merge(out: str) -> Folder:
    """Joins the parts of a folder: every video once, its trace or else its failure.

    The whole is written anew, in the order of the videos' paths; the parts stay. Raises UsageError
    where there are none, or one has not come to its end.
    """
    whole = Path(out)
    parts = sorted((whole / _PARTS).glob("*-of-*"))
    if not parts:
        raise UsageError(f"--merge: no parts in {whole / _PARTS}; were there several processes?")
    counts = {part.name.split("-of-")[1] for part in parts}
    wanted = {f"{i:05d}-of-{count}" for count in counts for i in range(int(count))}
    finished = {part.name for part in parts if (part / _FINISHED).exists()}
    complete = any({name for name in wanted if name.endswith(n)} <= finished for n in counts)
    if not complete:
        missing = _listed(wanted - finished)
        raise UsageError(f"--merge: not finished: {missing}; start that process again")
    traces: dict[str, dict] = _read_traces(whole / "trace.jsonl")
    failures: dict[str, dict] = {}
    for part in parts:
        traces |= _read_traces(part / "trace.jsonl")
        failures |= {line["id"]: line for line in _read_lines(part / "failures.jsonl")}
    ordered = sorted(traces.values(), key=lambda trace: (trace["video"], trace["id"]))
    left = [line for name, line in failures.items() if name not in traces]
    _replace(whole / "trace.jsonl", ordered)
    _replace(whole / "failures.jsonl", left)
    write(whole / CONFIG, (parts[0] / CONFIG).read_text(encoding="utf-8"))
    folder = Folder(whole, {trace["id"]: trace for trace in ordered}, set(traces))
    folder.failed = len(left)
    return folder


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _read_traces(path: Path) -> dict[str, dict]:
    """Finished traces by id; a line that an interruption left unfinished is cut off."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)
    traces = [json.loads(line) for line in whole.decode().splitlines()]
    return {trace["id"]: trace for trace in traces}


def _read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _replace(path: Path, records: Iterable[dict]) -> None:
    write(path, "".join(json.dumps(record) + "\n" for record in records))


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _thumbnails(trace: dict, decoder: Decoder) -> dict:
    """Small frames for a trace's pictures; none where the video can't be read any more."""
    from experiments.report import frames_shown

    shown = frames_shown(trace)
    width = min(320, trace["width"])
    size = (max(1, round(trace["height"] * width / trace["width"])), width)
    try:
        return dict(zip(shown, decoder.frames(trace["video"], shown, size=size), strict=True))
    except VideoError as error:
        log.warning("no thumbnails: %s", error)
        return {}


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:120]
