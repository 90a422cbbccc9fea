"""`saccade toy`: renders the toy world as mp4 files, with questions and times of events."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.mp4 import write_mp4
from data.toyquestions import pairs, questions
from data.toyscene import FPS, Scene
from data.toyworld import LEVELS, SPLITS, Clip, make, transformed
from data.types import Example, Transform
from experiments.arguments import Parser, UsageError
from experiments.outputs import take, write
from experiments.progress import Progress

log = logging.getLogger(__name__)

USAGE = "--out=DIR --clips=N [--seed=S] [--level=...] [--split=...] [--pairs]"
ABOUT = (
    "Writes mp4 files, manifest.jsonl (a question a line) and annotations.json (times of events, "
    "in the form of Oops!' transition_times.json) to --out."
)
TRANSFORMS: tuple[Transform, ...] = ("flip", "reversal")
_COLUMNS = (
    *("video", "id", "question", "options", "answer", "task", "kind", "route", "caption"),
    *("events", "pair"),
)


def main(argv: Sequence[str]) -> int:
    parser = Parser("toy", USAGE, ABOUT)
    parser.add_argument("--out", required=True, help="folder of videos and annotations")
    parser.add_argument("--clips", type=int, required=True, help="how many clips")
    parser.add_argument("--seed", type=int, default=0, help="of the clips and their questions")
    parser.add_argument("--level", choices=tuple(LEVELS), default="full", help="how hard they are")
    parser.add_argument("--split", choices=SPLITS, default="train", help="splits share no clip")
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="write flipped and reversed clips too, and pairs.jsonl with both sides' answers",
    )
    found = parser.parse(argv)
    if found.clips < 1:
        raise UsageError(f"--clips is {found.clips}; it must be positive")
    settings = {name: vars(found)[name] for name in ("seed", "level", "split", "pairs")}
    return run(Path(found.out), found.clips, settings)


def run(out: Path, number: int, settings: dict[str, Any]) -> int:
    """Writes `number` clips; those that an equal call has left in `out` are not encoded again.

    Returns 0, or 1 where `failures.jsonl` lists a clip. Raises UsageError.
    """
    failures: list[dict[str, str]] = []
    lines: dict[str, list[Example]] = {"manifest": [], "pairs": []}
    annotations: dict[str, dict[str, Any]] = {}
    seed, with_pairs = settings["seed"], settings["pairs"]
    take(out, settings)
    try:
        with Progress(number, "clip") as progress:
            for index in range(number):
                clip = make(index, seed=seed, level=settings["level"], split=settings["split"])
                clips = [clip, *(transformed(clip, by) for by in TRANSFORMS if with_pairs)]
                progress.add()
                if problem := next(filter(None, (_encoded(out, clip) for clip in clips)), None):
                    failures.append(problem)
                    continue
                annotations |= {name(clip.scene): annotation(clip.scene) for clip in clips}
                lines["manifest"] += questions(clip, seed=seed)
                for by in TRANSFORMS if with_pairs else ():
                    lines["pairs"] += [side for pair in pairs(clip, by, seed=seed) for side in pair]
        for file in ("manifest", "pairs")[: 1 + with_pairs]:
            write(out / f"{file}.jsonl", "".join(_line(example) for example in lines[file]))
        write(out / "annotations.json", json.dumps(annotations, indent=1) + "\n")
        write(out / "failures.jsonl", "".join(json.dumps(line) + "\n" for line in failures))
    except OSError as error:
        raise UsageError(f"--out={out}: {error.strerror or error}") from None
    log.info("%d clips and %d questions in %s", number, len(lines["manifest"]), out)
    if failures:
        log.warning("%d failed, listed in %s", len(failures), out / "failures.jsonl")
    return 1 if failures else 0


def name(scene: Scene) -> str:
    """The clip's file name without its ending."""
    return f"{scene.id}-{scene.transform}" if scene.transform else scene.id


def annotation(scene: Scene) -> dict[str, Any]:
    """An entry of Oops!' transition_times.json, with one worker: the truth.

    t: seconds of the first event, -1 where nothing odd happens. `events` has all of them.
    """
    seconds = [event.step / FPS for event in scene.events]
    first, length = (seconds or [-1.0])[0], scene.steps / FPS
    return {
        "t": [first],
        "len": length,
        "rel_t": [first / length if seconds else -1.0],
        "stdev": 0.0,
        "rel_stdev": 0.0,
        "n_notfound": int(not seconds),
        "events": [
            {"kind": event.kind, "step": event.step, "seconds": at}
            for event, at in zip(scene.events, seconds, strict=True)
        ],
    }


def _encoded(out: Path, clip: Clip) -> dict[str, str] | None:
    """Writes a clip unless it is there; what went wrong, as a line of failures.jsonl."""
    path = out / f"{name(clip.scene)}.mp4"
    if path.exists():
        return None
    part = path.with_suffix(".part.mp4")  # an interruption leaves no half of a clip
    try:
        write_mp4(part, clip.frames, FPS)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = " ".join(str(error).split())
        log.warning("%s: %s", path, reason)
        return {"video": str(path), "id": clip.scene.id, "stage": "write", "error": reason}
    return None


def _line(example: Example) -> str:
    record = {column: vars(example)[column] for column in _COLUMNS if vars(example)[column]}
    if example.transform:
        record["transform"] = example.transform
    return json.dumps(record) + "\n"
