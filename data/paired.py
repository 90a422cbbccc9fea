"""Sets whose questions come in pairs: TempCompass, TimeBlind and DyBench.

Each function makes an Example of one row (see `data.readers`); `pair` joins the two sides.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from data.annotations import LETTERS, DataError, Row, Rows, Videos, files, table, unfolded
from data.types import Example

_OPTION_LINE = re.compile(r"(?:([A-Z])\.|(?:Option|Sentence|Caption) (?:\d+|[A-Z]):) *(.+)")


def tempcompass(row: Row) -> Example:
    """TempCompass (Liu et al. 2024), all four tasks, told by the question's form.

    In captioning the answer is the fact that the caption has to hold. `pair` joins a question to
    the same one about the reversed video (<id>_reverse) in the same file.
    """
    name, question, answer = row.text("video_id"), row.text("question"), row.text("answer")
    stem, lines = _stem(question)
    options, kind, task = (), "multiple_choice", "multi-choice"
    if "Generated Caption" in question or row.has("mc_question"):
        task, kind, answer = "captioning", "caption", re.sub(r"^[A-Z]\. *", "", answer)
    elif answer.lower() in ("yes", "no"):
        task = kind = "yes_no"
    elif len(lines) < 2:
        row.fail("question", "neither lettered options, nor yes or no, nor a caption to generate")
    else:
        task = "multi-choice" if lines[0].startswith("A.") else "caption_matching"
        options = tuple(_OPTION_LINE.fullmatch(line)[2].strip() for line in lines)
        pairs = zip(lines, options, strict=True)
        said = [(line, option, *re.split("[.:]", line)[:1]) for line, option in pairs]
        given = [i for i, forms in enumerate(said) if answer in forms]
        if len(given) != 1:
            row.fail("answer", f"{answer!r} is none of the options {options}")
        question, answer = stem, LETTERS[given[0]]
    dim = row.text("dim")
    return Example(
        id=f"{task}/{name}/{dim}/{row.text('number', row.place)}",
        video=row.video("video_id", f"videos/{name}.mp4", f"{name}.mp4"),
        question=question,
        options=options,
        answer=answer,
        task=task,
        kind=kind,
        pair=row.text("pair", ""),
        extra=row.rest("video_id", "question", "answer", "number", "pair"),
    )


def _stem(question: str) -> tuple[str, list[str]]:
    """A question's own text, and the lines below it that are options."""
    lines = [line.strip() for line in question.split("\n")]
    options = [line for line in lines if _OPTION_LINE.fullmatch(line)]
    return "\n".join(line for line in lines if line not in options).strip(), options


def tempcompass_rows(path: Path, videos: Videos) -> Rows:
    """{video: {dimension: [{question, answer}]}}, or lmms-eval's table; pairs are named."""
    rows = list(unfolded(path, videos, "video_id", _questions))
    keys = []
    for row in rows:
        values = {} if isinstance(row, DataError) else row.values
        video, (stem, _) = str(values.get("video_id")), _stem(str(values.get("question")))
        forward = video.removesuffix("_reverse")
        keys.append(((f"{forward}/{values.get('dim')}/{stem}", row.file), video))
    counts = Counter(keys)
    for row, (pair, video) in zip(rows, keys, strict=True):
        forward = video.removesuffix("_reverse")
        if counts[pair, forward] == counts[pair, f"{forward}_reverse"] == 1:
            row = row.plus(pair=pair[0])
        yield row


def _questions(video: Row) -> Rows:
    for dim in video.rest("video_id"):
        try:
            for number, row in enumerate(video.inners(dim)):
                yield row.plus(video_id=video.values["video_id"], dim=dim, number=number)
        except DataError as error:
            yield error


_TIMEBLIND_ROLES = ("q0v0", "q0v1", "q1v0", "q1v1")


def timeblind(row: Row) -> Example:
    """TimeBlind (Li et al. 2026): rows 4i..4i+3 are two questions about two videos.

    `pair` is the instance, `extra["role"]` says which question and which video of it.
    """
    index, kind = row.integer("index"), row.text("type")
    name, question, answer = row.text("video_path"), row.text("question"), row.text("answer")
    question = re.sub(r" Please output (Yes or No|A or B)\.$", "", question)
    options = ()
    if kind == "multiple_choice":
        parts = re.fullmatch(r"(.*?)\s*Option A: (.*?)\s*Option B: (.*)", question, re.DOTALL)
        if not parts:
            row.fail("question", "there is no 'Option A: ... Option B: ...' in it")
        question, options = parts[1], (parts[2].strip(), parts[3].strip())
        answer = row.answer("answer", options)
    elif kind != "yes_no" or answer.lower() not in ("yes", "no"):
        row.fail("answer", f"{kind} and {answer}; should be yes_no and Yes or No, or a choice")
    return Example(
        id=str(index),
        video=row.video("video_path", name.removeprefix("TimeBlind/"), name),
        question=question,
        options=options,
        answer=answer,
        kind=kind,
        pair=str(index // 4),
        extra={
            "role": _TIMEBLIND_ROLES[index % 4],
            **row.rest("index", "video_path", "question", "answer", "type"),
        },
    )


_DYBENCH = {
    "video": ("video", "video_path", "path"),
    "question": ("question", "problem"),
    "options": ("options", "candidates"),
    "answer": ("answer", "solution"),
}
_SIDE = re.compile(r"[_-](flip|flipped|reverse|reversed|forward|backward|original|[01])$")


def dybench(row: Row) -> Example:
    """DyBench, pairs of counterfactual videos, one row per video; tolerant of column names.

    The sides of a pair are joined by an id column, else as rows 2i and 2i + 1 where these ask the
    same, else by file names without _flip, _reverse, _0, _1 and the like; `extra["paired_by"]` is
    the rule. A row without its other side is an error.
    """
    video, question, choices, answer = (row.first(*names) for names in _DYBENCH.values())
    name, options = row.text(video), row.options(choices)
    return Example(
        id=f"{row.text('pair')}/{row.integer('number')}",
        video=row.video(video, name, f"videos/{name}"),
        question=row.text(question),
        options=options,
        answer=row.untagged(answer).answer(answer, options, by_letter=False),
        task=row.text("task"),
        kind="multiple_choice",
        pair=row.text("pair"),
        extra=row.rest(video, question, choices, answer, "task", "pair", "number"),
    )


def dybench_rows(path: Path, videos: Videos) -> Rows:
    for file in files(path):
        rows = []
        for row in table(file, videos):
            if isinstance(row, Row):
                rows.append(row)
            else:
                yield row
        rule, keys = _join(rows)
        sizes, seen = Counter(keys), Counter()
        for row, key in zip(rows, keys, strict=True):
            if sizes[key] == 2:
                task = row.values.get("task") or file.stem
                yield row.plus(pair=key, number=seen[key], paired_by=rule, task=task)
                seen[key] += 1
            else:
                reason = f"unpaired: {sizes[key]} rows, not 2, are {key!r} by {rule}"
                yield DataError(row.file, row.place, "" if rule == "rows" else rule, reason)


def _join(rows: list[Row]) -> tuple[str, list[str]]:
    """The rule that joins rows to pairs, and each row's pair."""
    for column in ("pair_id", "group", "id"):
        keys = [str(row.values[column]) if row.has(column) else row.place for row in rows]
        repeats = len(set(keys)) < len(keys)  # an `id` may as well be each row's own
        if repeats or (column != "id" and any(row.has(column) for row in rows)):
            return column, keys

    def value(row: Row, name: str) -> Any:
        return next((row.values[c] for c in _DYBENCH[name] if c in row.values), None)

    def offered(row: Row) -> str:
        options = value(row, "options")
        return repr(sorted(map(str, options)) if isinstance(options, list) else options)

    asked = [(str(value(row, "question")), offered(row)) for row in rows]
    stems = [_SIDE.sub("", Path(str(value(row, "video"))).stem) for row in rows]
    many = Counter(stems)
    neighbours = list(zip(range(0, len(rows), 2), range(1, len(rows), 2), strict=False))
    fits = len(rows) % 2 == 0 and all(asked[i] == asked[j] for i, j in neighbours)
    if set(many.values()) == {2}:  # names that pair off may show that neighbours do not
        fits = fits and all(stems[i] == stems[j] for i, j in neighbours)
    if fits:
        return "rows", [str(i // 2) for i in range(len(rows))]
    pairs = zip(stems, asked, strict=True)
    return "stems", [stem if many[stem] <= 2 else f"{stem}: {ask}" for stem, (ask, _) in pairs]
