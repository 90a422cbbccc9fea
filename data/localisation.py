"""Sets of moments and of captions: Oops!, FunQA, ActivityNet Captions, ExFunTube and SPIKE's own.

Each function makes an Example of one row (see `data.readers`); times become seconds of the file.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

from data.annotations import (
    DataError,
    Row,
    Rows,
    Videos,
    document,
    keyed,
    mapping,
    read_text,
    table,
)
from data.types import Example


def oops(row: Row) -> Example | None:
    """Oops! (Epstein et al. 2020): the median of the times at which workers saw the failure.

    None for a clip in which more than one worker, or the only one, saw none (-1). Also takes the
    list that SPIKE's code reads: {set_id, index, transition}, over BlackSwan's merged clips.
    """
    if "transition" in row.values:
        folder, number = row.text("set_id"), row.text("index")
        id, names = f"{folder}/{number}", [f"{folder}_merged/{number}_E_merged.mp4"]
        times, unseen = [row.number("transition")], None
    else:
        id = row.text("clip")
        folders = ("oops_video/val", "oops_video/train", "val", "train", "")
        names = [f"{folder}/{id}.mp4".lstrip("/") for folder in folders]
        times, unseen = row.numbers("t"), row.integer("n_notfound")
    found = [time for time in times if time != -1]
    if any(time < 0 for time in found):
        row.fail("t" if unseen is not None else "transition", "a time is negative, and not -1")
    if unseen is not None and unseen != len(times) - len(found):
        row.fail("n_notfound", f"{unseen}, but -1 occurs {len(times) - len(found)} times in t")
    if not found or (unseen or 0) > 1:
        return None
    moment = float(statistics.median(found))
    return Example(
        id=id,
        video=row.video("clip" if unseen is not None else "index", *names),
        kind="localisation",
        events=((moment, moment),),
        extra=row.rest("clip", "set_id", "index"),
    )


def oops_rows(path: Path, videos: Videos) -> Rows:
    """transition_times.json; or a list of names (val_filtered.txt), or the folder with both."""
    if path.is_dir():
        path = path / "val_filtered.txt"
    if path.suffix != ".txt":
        is_list = isinstance(document(path), list)
        yield from table(path, videos) if is_list else keyed(path, videos, "clip")
        return
    times = path.with_name("transition_times.json")
    rows = {row.values["clip"]: row for row in keyed(times, videos, "clip") if isinstance(row, Row)}
    for number, name in enumerate(read_text(path).split("\n"), 1):
        if name.strip() in rows:
            yield rows[name.strip()]
        elif name.strip() and not path.name.startswith("train"):  # a third of train is labelled
            yield DataError(str(path), f"line {number}", "clip", f"{name} is not in {times}")


_FUNQA_FRAMES_PER_SECOND = 30.0
_FUNQA_KINDS = {"1": "localisation", "2": "caption", "3": "text", "4": "text", "5": "number"}
_FUNQA_FOLDERS = {"H": "humor", "C": "creative", "M": "magic"}


def funqa(row: Row) -> Example:
    """FunQA (Xie et al. 2023), the official records or lmms-eval's.

    The moments of H1 and M1 are frame numbers of 30 frames per second, those of C1 are seconds;
    `answer` keeps them as they are.
    """
    column = row.first("visual_input", "video_name")
    official = column == "visual_input"
    asks, answers = ("instruction", "output") if official else ("question", "answer")
    name, task = row.text(column), row.text("task")
    if not re.fullmatch("[HCM][1-4]|C5", task):
        row.fail("task", f"{task} is none of H1-H4, C1-C5, M1-M4")
    kind, events = _FUNQA_KINDS[task[1]], ()
    if kind == "localisation":
        answer = str(row.values[row.first(answers)])
        scale = 1.0 if task == "C1" else 1 / _FUNQA_FRAMES_PER_SECOND
        try:
            events = (row.interval(answers, json.loads(answer), scale=scale),)
        except json.JSONDecodeError:
            row.fail(answers, f"{answer!r} should be [start, end]")
    else:
        answer = row.text(answers)
    subset = _FUNQA_FOLDERS.get(name.rsplit("/")[-1][:1], "")
    splits = ("test", "test/test", "val", "val/val", "train", "train/train")
    names = [f"{split}_{subset}/{name}" for split in splits]
    return Example(
        id=row.text("ID", f"{task}/{name}/{row.place}"),
        video=row.video(column, *names, name, f"videos/{name}"),
        question=row.text(asks),
        answer=answer,
        task=task,
        kind=kind,
        caption=answer if kind == "caption" else "",
        events=events,
        extra=row.rest(column, asks, answers, "task", "ID"),
    )


def activitynet_captions(row: Row) -> Example:
    """ActivityNet Captions (Krishna et al. 2017): all sentences as one caption, all events.

    An event that is written the wrong way round, as a few are, is turned.
    """
    sentences = row.texts("sentences")
    events = row.values[row.first("timestamps")]
    if not isinstance(events, list) or len(events) != len(sentences):
        row.fail("timestamps", f"there should be one for each of {len(sentences)} sentences")
    return Example(
        id=row.text("video"),
        video=row.video("video", f"{row.text('video')}.mp4", f"videos/{row.text('video')}.mp4"),
        kind="caption",
        caption=" ".join(sentences),
        events=tuple(row.interval("timestamps", event, turn=True) for event in events),
        extra=row.rest("video", "timestamps"),
    )


def activitynet_rows(path: Path, videos: Videos) -> Rows:
    yield from keyed(path, videos, "video")


def exfuntube(row: Row) -> Example:
    """ExFunTube (Ko et al. 2023): the longest funny moment, and its explanation as the caption."""
    name = row.text("youtube_id")
    moments = row.inners("moments")
    spans = [m.interval("end", [m.number("start"), m.number("end")]) for m in moments]
    longest = max(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0])
    return Example(
        id=name,
        video=row.video("youtube_id", f"{name}.mp4", f"videos/{name}.mp4"),
        kind="caption",
        caption=moments[longest].text("explanation"),
        events=(spans[longest],),
        extra=row.rest("youtube_id"),
    )


def spike_rl(row: Row) -> Example:
    """SPIKE-RL's training rows: {video, caption, duration, source}."""
    name, source = row.text("video"), row.text("source", "")
    return Example(
        id=f"{source}/{name}" if source else name,
        video=row.video("video", name, f"{source or '.'}/{name}"),
        task=source,
        kind="caption",
        caption=row.text("caption"),
        extra=row.rest("video", "caption", "source"),
    )


def laughter(row: Row) -> Example:
    """A set whose moments are its loudest laughs, in the form of SPIKE's Mr. Bean clips."""
    name = row.text("scene_file")
    peak = row.inner("volume_peak_3s")
    times = [peak.number("start_time"), peak.number("end_time")]
    return Example(
        id=Path(name).stem,
        video=row.video("scene_file", name),
        kind="localisation",
        events=(peak.interval("end_time", times),),
        extra=row.rest("scene_file"),
    )


def laughter_rows(path: Path, videos: Videos) -> Rows:
    yield from Row(str(path), "", mapping(path), videos).inners("scenes")
