"""An output folder of `saccade score`: what is kept, what has failed, pictures and report."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from data.video import Decoder, VideoError
from experiments.arguments import UsageError
from experiments.sources import Source
from surprise import Trace

log = logging.getLogger(__name__)

UNTRAINED = (
    "The model has random weights: its words mean nothing, and so does its surprise. "
    "What this run shows is the path from a video file to a trace."
)


class Folder:
    """An output directory: whole lines only, and never a finished video twice."""

    def __init__(self, path: Path, traces: dict[str, dict]):
        self.path, self.traces, self.failed = path, traces, 0

    @classmethod
    def open(cls, out: str, config: dict[str, Any]) -> Folder:
        """Makes the directory, or takes up what an equal call has left in it."""
        path = Path(out)
        try:
            path.mkdir(parents=True, exist_ok=True)
            traces = _read_traces(path / "trace.jsonl")
            before = path / "config.json"
            if traces and before.exists():
                _check_same(path, json.loads(before.read_text()), config)
            before.write_text(json.dumps(config, indent=2) + "\n")
            (path / "failures.jsonl").write_text("")  # what failed before is tried again
            return cls(path, traces)
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

    def picture(self, trace: Trace, decoder: Decoder) -> None:
        from experiments.report import figure

        pictures = self.path / "pictures"
        pictures.mkdir(exist_ok=True)
        record = self.traces[trace.id]
        figure(record, _thumbnails(record, decoder), pictures / f"{_file_name(trace.id)}.png")

    def report(self, decoder: Decoder) -> None:
        from experiments.report import html

        lines = (self.path / "failures.jsonl").read_text(encoding="utf-8").splitlines()
        failures = [json.loads(line) for line in lines]
        traces = list(self.traces.values())
        thumbnails = (_thumbnails(trace, decoder) for trace in traces)
        trained = all(trace["settings"]["run"]["trained"] for trace in traces)
        note = "" if trained else UNTRAINED
        html(traces, thumbnails, failures, self.path / "report.html", note=note)


def _check_same(path: Path, before: dict, now: dict) -> None:
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise UsageError(
            f"--out={path} holds results of other settings ({', '.join(changed)}); "
            "choose another folder, or remove this one"
        )


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
