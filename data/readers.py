"""Published benchmarks, from the files as they are downloaded, to Examples.

`read("video_mme", "Video-MME/test.parquet")`. A dataset is two functions in `READERS`: one finds
the rows in its files, the other makes an Example of a row, or None of one without a target. Videos
are looked for below `root`, be it the dataset's folder or that of the videos; none is opened here.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from data import localisation, paired
from data.annotations import (
    LETTERS,
    DataError,
    Row,
    Rows,
    Videos,
    files,
    mapping,
    table,
    unfolded,
    without_letters,
)
from data.types import Example

log = logging.getLogger(__name__)

KINDS = ("multiple_choice", "yes_no", "number", "text", "caption", "localisation")


def read(
    name: str,
    path: str | Path,
    *,
    root: str | Path | Sequence[str | Path] | None = None,
    on_error: Callable[[DataError], None] | None = None,
) -> list[Example]:
    """The items of a dataset, in the order of its files.

    name: a key of `READERS`. path: the annotation file, or the folder of a set in several files.
    root: the folder of the videos, or several; without it, the annotation's own. A manifest's paths
    are relative to its folder whatever the root, and must lie below the one or the other.
    on_error: is told of each bad row, which is then left out; without it the first one is raised.

    Raises DataError, and ValueError for a name that is not known.
    """
    if name not in READERS:
        raise ValueError(f"no dataset {name!r}; choose from {', '.join(READERS)}")
    rows, make = READERS[name]
    path = Path(path)
    roots = [Path(root)] if isinstance(root, str | Path) else [Path(r) for r in root or ()]
    if name == "manifest":
        folder = path.resolve() if path.is_dir() else path.resolve().parent
        videos = Videos([folder], [folder, *roots], follow=True)
    else:
        videos = Videos(roots or [path if path.is_dir() else path.parent], follow=False)

    examples: list[Example] = []
    left_out = 0
    for row in _to_the_end(rows(path, videos), str(path)):
        try:
            example = row if isinstance(row, DataError) else make(row)
        except DataError as error:
            example = error
        if isinstance(example, DataError):
            if on_error is None:
                raise example
            on_error(example)
        elif example is None:
            left_out += 1
        else:
            examples.append(example)
    if left_out:
        log.info("%s: %d items without a target, or without a video, left out", path, left_out)
    return examples


def _to_the_end(rows: Rows, path: str) -> Rows:
    """The rows; an error that ends them, as the last one; and one where there is none at all."""
    row = None
    try:
        for row in rows:
            yield row
        if row is None:
            yield DataError(path, "", "", "there is no item in it")
    except DataError as error:
        yield error


# Questions and answers


_BLACKSWAN = {
    "Detective": ("D", "Which of these explains what happened in the part that is not shown?"),
    "Reporter": ("E", "Which of these describes what happens in the video?"),
}


def blackswan(row: Row) -> Example:
    """BlackSwanSuite-MCQ (Chinchure et al. 2025); the answers of the test set are withheld.

    A Detective sees what was before and after the event, in the clip D_merged; a Reporter sees all
    of it, in E_merged. Also SPIKE's rows, which have a `video_path` and no question of their own.
    """
    task, options = row.text("task"), row.options("mcq_options")
    if task not in _BLACKSWAN:
        row.fail("task", f"{task} is neither Detective nor Reporter")
    clip, question = _BLACKSWAN[task]
    if row.has("video_path"):
        video = row.video("video_path", row.text("video_path"))
    else:
        folder, number = row.text("set_id"), row.text("index")
        video = row.video("index", f"{folder}_merged/{number}_{clip}_merged.mp4")
    withheld = not row.has("mcq_gt_option") or row.integer("mcq_gt_option") == -1
    return Example(
        id=row.text("q_id"),
        video=video,
        question=row.text("default_question", question),
        options=options,
        answer="" if withheld else row.letter_at("mcq_gt_option", options),
        task=task,
        kind="multiple_choice",
        extra=row.rest("q_id", "task", "default_question", "mcq_options", "mcq_gt_option"),
    )


def video_mme(row: Row) -> Example:
    """Video-MME (Fu et al. 2024); also SPIKE's rows, which have a `video_path`."""
    column, options = row.first("videoID", "video_path"), row.options("options")
    name = row.text(column)
    names = (f"data/{name}.mp4", f"{name}.mp4", f"videos/{name}.mp4", f"video/{name}.mp4")
    return Example(
        id=row.text("question_id", f"{name}/{row.place}"),
        video=row.video(column, *(names if column == "videoID" else (name,))),
        question=row.text("question"),
        options=options,
        answer=row.answer("answer", options),
        task=row.text("task_type", ""),
        kind="multiple_choice",
        extra=row.rest(column, "question_id", "question", "options", "answer", "task_type"),
    )


def nextqa(row: Row) -> Example:
    """NExT-QA (Xiao et al. 2021): five options a0..a4, and the answer's number; or open-ended.

    Videos stand under their VidOR path where map_vid_vidorID.json lies beside the file.
    """
    video, vidor = row.text("video"), row.text("vidor", "")
    columns = [f"a{i}" for i in range(5)]
    options = ()
    if any(column in row.values for column in columns):
        options = without_letters([row.text(column) for column in columns])
    names = [f"{folder}{name}.mp4" for name in (vidor, video) if name for folder in _NEXTQA]
    return Example(
        id=f"{video}_{row.text('qid')}",
        video=row.video("video", *names),
        question=row.text("question"),
        options=options,
        answer=row.letter_at("answer", options) if options else row.text("answer"),
        task=row.text("type"),
        kind="multiple_choice" if options else "text",
        extra=row.rest("video", "vidor", "qid", "question", "answer", "type", *columns),
    )


_NEXTQA = ("", "NExTVideo/", "videos/")


def _nextqa_rows(path: Path, videos: Videos) -> Rows:
    beside = (path if path.is_dir() else path.parent) / "map_vid_vidorID.json"
    vidor = mapping(beside) if beside.is_file() else None
    for row in table(path, videos):
        if isinstance(row, Row) and vidor is not None:
            name = str(row.values.get("video"))
            if name not in vidor:
                yield DataError(row.file, row.place, "video", f"{name} is not in {beside}")
                continue
            row = row.plus(vidor=vidor[name])
        yield row


def nextgqa(row: Row) -> Example:
    """NExT-GQA as VideoChat-R1 ships it: a choice, and the moments that hold the answer."""
    options = row.options("options")
    return Example(
        id=row.text("id"),
        video=row.video("video", row.text("video"), f"videos/{row.text('video')}"),
        question=row.text("question"),
        options=options,
        answer=row.answer("answer", options),
        task=row.text("type"),
        kind="multiple_choice",
        events=row.intervals("glue"),
        extra=row.rest("id", "video", "question", "options", "answer", "type", "glue"),
    )


_MVBENCH_FOLDERS = {
    **dict.fromkeys(("action_sequence", "action_prediction"), "star/Charades_v1_480"),
    "object_interaction": "star/Charades_v1_480",
    "action_localization": "sta/sta_video",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "unexpected_action": "FunQA_test/test",
    "scene_transition": "scene_qa/video",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    **dict.fromkeys(("object_existence", "moving_count"), "clevrer/video_validation"),
    **dict.fromkeys(("moving_direction", "moving_attribute"), "clevrer/video_validation"),
    "counterfactual_inference": "clevrer/video_validation",
    **dict.fromkeys(("object_shuffle", "action_count"), "perception/videos"),
    **dict.fromkeys(("state_change", "character_order"), "perception/videos"),
}


def mvbench(row: Row) -> Example:
    """MVBench (Li et al. 2024) and sets of its form (TVBench, MLVU): a folder of one file per task.

    `start` and `end`, where a task has them, are the span of the video that counts.
    """
    name, options = row.text("video"), without_letters(row.texts("candidates"))
    task = row.text("question_type", row.text("task"))
    folders = [f"{_MVBENCH_FOLDERS[task]}/"] if task in _MVBENCH_FOLDERS else []
    names = [f"{root}{folder}{name}" for folder in (*folders, "") for root in ("", "video/")]
    span = None
    if row.has("start") or row.has("end"):
        span = row.interval("end", [row.number("start"), row.number("end")])
    return Example(
        id=f"{task}/{row.text('number')}",
        video=row.video("video", *names),
        span=span,
        question=row.text("question"),
        options=options,
        answer=row.letter_of_text("answer", options),
        task=task,
        kind="multiple_choice",
        extra=row.rest("video", "question", "candidates", "answer", "task", "number"),
    )


def _mvbench_rows(path: Path, videos: Videos) -> Rows:
    for file in files(path):
        for number, row in enumerate(table(file, videos)):
            if isinstance(row, Row):
                row = row.plus(task=row.values.get("task") or file.stem, number=number)
            yield row


def perception_test(row: Row) -> Example:
    """Perception Test (Patraucean et al. 2023), multiple choice: the JSON, or the hub's table.

    The answers of the test set are withheld.
    """
    name, options = row.text("video_name"), row.options("options")
    return Example(
        id=f"{name}_{row.text('question_id')}",
        video=row.video("video_name", f"videos/{name}.mp4", f"{name}.mp4"),
        question=row.text("question"),
        options=options,
        answer=row.letter_at("answer_id", options) if row.has("answer_id") else "",
        task=row.text("area", ""),
        kind="multiple_choice",
        extra=row.rest("video_name", "question_id", "question", "options", "answer_id", "area"),
    )


def _perception_rows(path: Path, videos: Videos) -> Rows:
    yield from unfolded(path, videos, "video_name", _perception_questions)


def _perception_questions(video: Row) -> Rows:
    if video.has("mc_question"):  # some videos have none
        for number, row in enumerate(video.inners("mc_question")):
            name, question_id = video.values["video_name"], row.values.get("id", number)
            yield row.plus(video_name=name, question_id=question_id)


def mmvu(row: Row) -> Example:
    """MMVU (Zhao et al. 2025): five choices by letter, or an open question with empty ones."""
    column = row.first("video", "video_path")
    name = row.text(column).partition("/resolve/main/")[2] or row.text(column)
    options = ()
    if row.text("question_type") == "multiple-choice":
        choices = row.inner("choices")
        options = tuple(choices.text(letter) for letter in LETTERS[: len(choices.values) or 2])
    return Example(
        id=row.text("id"),
        video=row.video(column, name, name.removeprefix("videos/")),
        question=row.text("question"),
        options=options,
        answer=row.answer("answer", options),
        task=row.text("question_type"),
        kind="multiple_choice" if options else "text",
        extra=row.rest("id", column, "question", "choices", "answer", "question_type"),
    )


def vsibench(row: Row) -> Example:
    """VSI-Bench (Yang et al. 2024): a choice, or a number where there are no options."""
    name = f"{row.text('dataset')}/{row.text('scene_name')}.mp4"
    options = row.options("options") if row.has("options") else ()
    return Example(
        id=row.text("id"),
        video=row.video("scene_name", name, f"videos/{name}"),
        question=row.text("question"),
        options=options,
        answer=row.answer("ground_truth", options),
        task=row.text("question_type"),
        kind="multiple_choice" if options else "number",
        extra=row.rest("id", "question", "options", "ground_truth", "question_type"),
    )


def videommmu(row: Row) -> Example:
    """VideoMMMU (Hu et al. 2025), its three tracks; open questions have no options.

    A question of the Adaptation track speaks of <image 1>, which is no part of the file.
    """
    name = row.text("id")
    track = row.text("track", "")
    subject = re.sub(r"^[^_]*_|_\d+$", "", name)
    options = row.options("options") if row.has("options") else ()
    return Example(
        id=f"{track}/{name}" if track else name,
        video=row.video("id", f"{name}.mp4", f"videos/{name}.mp4", f"{subject}/{name}.mp4"),
        question=row.text("question"),
        options=options,
        answer=row.answer("answer", options),
        task=track or row.text("question_type", ""),
        kind="multiple_choice" if options else "text",
        extra=row.rest("id", "track", "question", "options", "answer"),
    )


def _videommmu_rows(path: Path, videos: Videos) -> Rows:
    """{track: {number: {id, question, ...}}}, or the hub's table."""
    yield from unfolded(path, videos, "track", _videommmu_questions)


def _videommmu_questions(track: Row) -> Rows:
    for key in track.rest("track"):
        yield track.inner(key).plus(track=track.values["track"])


_VIDEO_R1_KINDS = {
    "multiple choice": "multiple_choice",
    "numerical": "number",
    "regression": "number",
    "OCR": "text",
    "free-form": "text",
}


def video_r1(row: Row) -> Example | None:
    """Video-R1-260k and the COT file, whose `process` stays in `extra`; None for an image."""
    kind = _VIDEO_R1_KINDS.get(task := row.text("problem_type"))
    if kind is None:
        row.fail("problem_type", f"{task!r} is none of {', '.join(_VIDEO_R1_KINDS)}")
    if row.text("data_type") == "image":
        return None
    options = row.options("options") if kind == "multiple_choice" else ()
    return Example(
        id=row.text("problem_id"),
        video=row.video("path", row.text("path")),
        question=row.text("problem"),
        options=options,
        answer=row.untagged("solution").answer("solution", options),
        task=task,
        kind=kind,
        extra=row.rest("problem_id", "path", "problem", "options", "solution", "problem_type"),
    )


_MANIFEST = ("id", "video", "span", "question", "options", "answer", "task", "kind", "route")
_MANIFEST += ("caption", "events", "pair")


def manifest(row: Row) -> Example:
    """Our own: {"video": ...} and any of Example's fields down to `pair`; the rest is `extra`.

    `answer` is a letter or the exact text of an option; `span` is [start, end], `events` a list of
    such pairs or of single moments; `kind` is guessed where it is left out.
    """
    options = row.options("options") if row.has("options") else ()
    events = row.values["events"] if row.has("events") else []
    if not isinstance(events, list):
        row.fail("events", "should be a list of [start, end], or of moments")
    events = [e if isinstance(e, list) else [e, e] for e in events]
    example = Example(
        id=row.text("id"),
        video=row.video("video", row.text("video")),
        span=row.interval("span", row.values["span"]) if row.has("span") else None,
        question=row.text("question", ""),
        options=options,
        answer=row.answer("answer", options, by_letter=False) if row.has("answer") else "",
        task=row.text("task", ""),
        route=row.text("route", ""),
        caption=row.text("caption", ""),
        events=tuple(row.interval("events", event) for event in events),
        pair=row.text("pair", ""),
        extra=row.rest(*_MANIFEST),
    )
    kind = row.text("kind", _guess_kind(example))
    if kind and kind not in KINDS:
        row.fail("kind", f"{kind!r} is none of {', '.join(KINDS)}")
    if options and not example.question:
        row.fail("question", "is empty, and yet there are options")
    return example.replace(kind=kind)


def _guess_kind(example: Example) -> str:
    if example.options:
        return "multiple_choice"
    if example.question:
        return "yes_no" if example.answer.lower() in ("yes", "no") else "text"
    return "caption" if example.caption else "localisation" if example.events else ""


def _manifest_rows(path: Path, videos: Videos) -> Rows:
    """The rows; one without an id goes by its video, and by number where that occurs again."""
    seen: Counter[str] = Counter()
    for row in table(path, videos):
        if isinstance(row, Row) and not row.has("id"):
            name = str(row.values.get("video"))
            seen[name] += 1
            id = name if seen[name] == 1 else f"{name}#{seen[name]}"
            row = row.plus(id=id)
        yield row


READERS: dict[str, tuple[Callable[[Path, Videos], Rows], Callable[[Row], Example | None]]] = {
    "oops": (localisation.oops_rows, localisation.oops),
    "funqa": (table, localisation.funqa),
    "activitynet_captions": (localisation.activitynet_rows, localisation.activitynet_captions),
    "exfuntube": (table, localisation.exfuntube),
    "spike_rl": (table, localisation.spike_rl),
    "laughter": (localisation.laughter_rows, localisation.laughter),
    "tempcompass": (paired.tempcompass_rows, paired.tempcompass),
    "timeblind": (table, paired.timeblind),
    "dybench": (paired.dybench_rows, paired.dybench),
    "blackswan": (table, blackswan),
    "video_mme": (table, video_mme),
    "nextqa": (_nextqa_rows, nextqa),
    "nextgqa": (table, nextgqa),
    "mvbench": (_mvbench_rows, mvbench),
    "perception_test": (_perception_rows, perception_test),
    "mmvu": (table, mmvu),
    "vsibench": (table, vsibench),
    "videommmu": (_videommmu_rows, videommmu),
    "video_r1": (table, video_r1),
    "manifest": (_manifest_rows, manifest),
}
"""Name -> what finds the rows of a dataset, and what makes an Example of one."""
