"""`saccade evaluate` on published sets: traces against annotations, beside pixel baselines."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.annotations import DataError
from data.types import Example
from data.video import Decoder, VideoError
from experiments import score
from experiments.arguments import UsageError
from experiments.folder import Folder
from experiments.localise import Row, Video, flat, hits, metrics, spread
from experiments.options import Options
from experiments.progress import Progress
from experiments.sources import Source, items
from surprise import Trace, TraceError
from surprise.baselines import SCORES, centre_scores, random_scores
from surprise.localisation import paired

log = logging.getLogger(__name__)

_OWN = ("kl", "js", "evidence")


def annotated(
    model: str, out: Path, config: dict[str, Any], options: Options
) -> tuple[int, dict[str, Any], list[Row]]:
    """Exit status, figures and rows of a set with annotated moments.

    Its videos are scored into `out`, unless the configuration names traces. What can't be used, be
    it a row of the set, a video or a trace, is listed in failures.jsonl and left out of every row
    of the table. Raises UsageError.
    """
    deltas = {f"acc_{float(delta):g}": float(delta) for delta in config["deltas"]}
    examples, bad_rows = _examples(config)
    if config["traces"]:
        folder = _given(out, config["traces"])
    else:
        folder = _scored(model, out, config, options, examples)
    for error in bad_rows:
        folder.fail(Source(error.place, error.place), "annotation", str(error))
    listed = {line["id"] for line in _lines(folder.path / "failures.jsonl")}
    videos: list[Video] = []
    scores: list[dict[str, np.ndarray]] = []
    with (
        Decoder(timeout=options.timeout) as decoder,
        Progress(len(examples), "video", about="pixel baselines") as progress,
    ):
        for example, trace in _joined(examples, folder):
            source = Source(example.video, example.id)
            if trace is not None and len(trace.steps) < 2:
                folder.fail(source, "trace", "its trace has one step, which observes nothing")
            elif trace is not None:
                try:
                    scores.append(_scores(example, trace, decoder, config["pixel_height"]))
                    videos.append(_video(example, trace, oops=config["dataset"] == "oops"))
                except VideoError as error:
                    folder.fail(source, error.stage, str(error))
            elif example.id not in listed:
                folder.fail(source, "trace", "there is no trace of this video")
            progress.add()
    if not videos:
        raise UsageError(f"{config['dataset']}: no video of the set has a trace and can be read")
    figures, table = _report(videos, scores, deltas)
    return folder.status(), figures, table


def _examples(config: dict[str, Any]) -> tuple[list[Example], list[DataError]]:
    """The set's items with annotated moments, and the rows that can't be read."""
    found, errors = items(config, toy="toy (with the modes :toy and :demo)")
    examples = [example for example in found if example.events]
    if not examples:
        reason = f": {errors[0]}" if errors else ""
        raise UsageError(f"{config['annotations']}: no item has an annotated moment{reason}")
    return examples, errors


# Traces


def _scored(
    model: str, out: Path, config: dict[str, Any], options: Options, examples: Sequence[Example]
) -> Folder:
    """The folder of the set's traces, after `saccade score` of those that it lacks."""
    shaped_by = options.shaped_by()
    folder = Folder.open(str(out), {"model": model, **config}, shaped_by=shaped_by)
    ids = {example.video: example.id for example in reversed(examples)}
    todo = [Source(video, id) for video, id in ids.items() if id not in folder.finished]
    if todo:
        score.score(todo, folder, options, model)
    return folder


def _given(out: Path, file: str) -> Folder:
    """A folder of results beside the traces of a file, whose bad lines are listed as failed."""
    try:
        (out / "failures.jsonl").write_text("")
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    folder = Folder(out, {}, set())
    for number, line in enumerate(lines, 1):
        try:
            trace = Trace.from_line(line)
            folder.traces[trace.id] = trace.to_dict()
        except TraceError as error:
            folder.fail(Source(f"{file}:{number}", f"{file}:{number}"), "trace", str(error))
    return folder


def _joined(examples: Sequence[Example], folder: Folder) -> Iterator[tuple[Example, Trace | None]]:
    """Each item with its trace: that of its file, else of its id, else of a file of its name.

    A name joins only where no other file, traced or annotated, has the same.
    """
    traces = [Trace.from_dict(trace) for trace in folder.traces.values()]
    by_path = {Path(trace.video).resolve(): trace for trace in traces}
    by_id = {trace.id: trace for trace in traces}
    names = Counter(path.name for path in by_path)
    by_name = {path.name: trace for path, trace in by_path.items() if names[path.name] == 1}
    asked = Counter(Path(video).name for video in {example.video for example in examples})
    for example in examples:
        path = Path(example.video)
        found = by_path.get(path.resolve()) or by_id.get(example.id)
        if found is None and asked[path.name] == 1:
            found = by_name.get(path.name)
        yield example, found


def _video(example: Example, trace: Trace, *, oops: bool) -> Video:
    return Video(
        seconds=np.array([step.seconds for step in trace.steps]),
        events=example.events,
        windows=example.events,
        length=trace.seconds,
        kind=example.task,
        oops=oops,
    )


# Scores


def _scores(example: Example, trace: Trace, decoder: Decoder, height: int) -> dict[str, np.ndarray]:
    """Every score of a video's K frames. The trace's own comes first; step 0 is never the best."""
    own = {name: np.array([vars(step)[name] for step in trace.steps]) for name in ("score", *_OWN)}
    path = example.video if Path(example.video).exists() else trace.video
    high = min(height, trace.height)
    size = (high, max(1, round(trace.width * high / trace.height)))
    frames = decoder.frames(path, trace.frames, size=size)
    found = own | {name: baseline(frames) for name, baseline in SCORES.items()}
    count, seed = len(frames), sum(example.id.encode("utf-8", "surrogatepass"))
    found |= {"random": random_scores(count, seed=seed), "always the middle": centre_scores(count)}
    for values in found.values():
        values[:1] = values[1:].min()
    return found


def _report(
    videos: Sequence[Video], scores: Sequence[dict[str, np.ndarray]], deltas: dict[str, float]
) -> tuple[dict[str, Any], list[Row]]:
    """Figures are those of the trace's own score; nothing is tuned, so every baseline has a row."""
    last = list(deltas.values())[-1]
    own = hits([row["score"] for row in scores], videos, last)
    figures: dict[str, Any] = {}
    table: list[Row] = []
    for name in scores[0]:
        rows = [row[name] for row in scores]
        found = metrics(rows, videos, deltas)
        if name == "score":
            figures = flat(found)
        behind = paired(own, hits(rows, videos, last))
        table.append(
            {"part": "localisation", "score": name, "n": len(videos)}
            | spread(found)
            | spread({"behind score": behind})
        )
    return figures, table


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
