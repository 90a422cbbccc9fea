"""The picture of one trace: frames along time, the surprise curve, expectation against observation.

The page is laid out in inches from the top down: each part draws itself and returns where the next
one may begin. Everything that has a time shares one time axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.sheet import ACCENT, CARD, INK, MUTED, PAPER, RULE, WIDTH, Sheet

Thumbnails = Mapping[int, UInt8[np.ndarray, "height width 3"]]

BEFORE, UNIFORM = "#aab4c5", "#4f6f8f"

MARGIN, GUTTER = 0.4, 1.15  # inches; the gutter holds the names of the rows
LEFT, RIGHT = MARGIN + GUTTER, WIDTH - MARGIN
GAP = 0.06
CURVE_HEIGHT = 1.75
SHOWN_HYPOTHESES = 5


def figure(trace: Mapping[str, Any], thumbnails: Thumbnails, path: str | Path) -> None:
    """Writes the PNG of one trace: 1500 pixels wide, about 1000 to 1600 high.

    `trace` is one line of trace.jsonl; `thumbnails` maps frame indices to uint8 [h, w, 3], and
    those of `frames_shown` fill every place. A missing one leaves its place grey; with none at all
    the rows of pictures are left out. Raises OSError where `path` cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"text.usetex": False, "path.sketch": None}):
        page = Sheet()
        time = _Time(max([trace["seconds"], *(step["seconds"] for step in trace["steps"])]))
        thumb = _thumb_size(trace)
        moments = _moments(trace["steps"])
        top = _header(page, trace)
        if thumbnails:
            top = _film(page, trace["steps"], thumbnails, time, thumb, moments, top)
        peaks = _curve(page, trace, time, moments, top)
        top = _time_labels(page, time, top + CURVE_HEIGHT)
        last_lane = top
        for label, colour, frames in _selections(trace):
            last_lane = top
            top = _lane(page, label, colour, frames, thumbnails, time, thumb, top)
        for x, y in peaks:
            page.line([x, x], [y, last_lane], ACCENT, 0.6, style=(0, (1, 2)), zorder=1.5)
        top = _expectations(page, trace, thumbnails, moments, top)
        page.save(path, top)


def frames_shown(trace: Mapping[str, Any]) -> list[int]:
    """The frames that `figure` has places for, sorted: decode these, at about 320 pixels wide."""
    columns = _columns(_thumb_size(trace)[0])
    shown = {step["frame"] for step in trace["steps"]}
    for _, _, frames in _selections(trace):
        shown.update(_spread(list(frames), columns))
    return sorted(shown)


def uniform_frames(trace: Mapping[str, Any]) -> list[int]:
    """The uniform frames for the budget of the trace's selection."""
    from surprise.frames import select_frames

    return select_frames(
        [step["score"] for step in trace["steps"]],
        budget=trace["selected"]["budget"],
        frame_count=trace["frame_count"],
        frames=[step["frame"] for step in trace["steps"]],
        method="uniform",
    ).tolist()


def seconds_of(trace: Mapping[str, Any], frames: Sequence[int]) -> list[float]:
    """Seconds of any frames, off the line through the steps' true times (variable rates too)."""
    steps = trace["steps"]
    if len(steps) < 2:
        return [frame / trace["fps"] for frame in frames]
    known = [step["frame"] for step in steps], [step["seconds"] for step in steps]
    return np.interp(list(frames), *known).tolist()


# What is shown, and where ------------------------------------------------------------------------


def _moments(steps: Sequence[Mapping[str, Any]], most: int = 2) -> list[int]:
    """Indices of the highest peaks of the curve, highest first; those far below it don't count."""
    scores = [round(step["score"], 9) for step in steps]
    peaks = [
        i
        for i in range(1, len(steps))
        if (i == 1 or scores[i] > scores[i - 1])
        and scores[i] >= max(scores[i : i + 2])
        and steps[i]["hypotheses"]
    ]
    peaks.sort(key=lambda i: -scores[i])
    return peaks[:1] + [i for i in peaks[1:most] if scores[i] > max(0.1 * scores[peaks[0]], 0.0)]


def _selections(
    trace: Mapping[str, Any],
) -> list[tuple[tuple[str, str], str, dict[int, float]]]:
    """(name and count, colour, {frame: seconds} in order) of the chosen and the uniform frames."""
    selected = trace["selected"]
    if selected is None:
        return []
    chosen = dict(sorted(zip(selected["frames"], selected["seconds"], strict=True)))
    even = uniform_frames(trace)
    uniform = dict(zip(even, seconds_of(trace, even), strict=True))
    return [
        ((f"by {selected['method']}", _count(len(chosen), "frame")), ACCENT, chosen),
        (("uniform", _count(len(uniform), "frame")), UNIFORM, uniform),
    ]


def _thumb_size(trace: Mapping[str, Any], area: float = 0.52) -> tuple[float, float]:
    """Width and height in inches of a picture in a row: the video's shape, the row filled."""
    aspect = min(max(trace["width"] / max(trace["height"], 1), 0.5), 2.4)
    columns = _columns(math.sqrt(area * aspect))
    width = (RIGHT - LEFT - (columns - 1) * GAP) / columns
    return width, width / aspect


def _columns(width: float) -> int:
    return int((RIGHT - LEFT + GAP + 1e-6) / (width + GAP))


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most `most` items, evenly drawn, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _row(centres: Sequence[float], width: float) -> list[float]:
    """Left edges of pictures as near to their centres as they go without touching one another."""
    lefts: list[float] = []
    for centre in centres:
        lefts.append(max(centre - width / 2, lefts[-1] + width + GAP if lefts else LEFT))
    limit = RIGHT - width
    for i in reversed(range(len(lefts))):
        lefts[i] = min(lefts[i], limit)
        limit = lefts[i] - width - GAP
    return lefts


@dataclass(frozen=True)
class _Time:
    """The shared axis: seconds 0..end lie between LEFT and RIGHT."""

    end: float

    def x(self, second: float) -> float:
        share = second / self.end if self.end > 0 else 0.0
        return LEFT + (RIGHT - LEFT) * min(max(share, 0.0), 1.0)


def _nice(value: float, steps: Sequence[float]) -> float:
    """The first of steps, or of their multiples by powers of ten, that reaches value > 0."""
    for step in steps:
        if step >= value:
            return step
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power
        for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10.001)
        if step * power >= value
    )


def _clock(second: float, end: float) -> str:
    if end < 90:
        return f"{second:.3g} s"
    return f"{int(second // 60)}:{int(second % 60):02d}"


def _number(value: float) -> str:
    """Two decimals, or two figures where those would say nothing."""
    if abs(value) >= 0.1 or abs(value) < 1e-9:
        return f"{abs(value) if abs(value) < 1e-9 else value:.2f}"
    return f"{value:.2g}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


# The parts, from the top down --------------------------------------------------------------------


def _header(page: Sheet, trace: Mapping[str, Any]) -> float:
    steps = trace["steps"]
    facts = [
        f"{trace['seconds']:.1f} s",
        f"{trace['fps']:.4g} fps",
        f"{trace['width']}×{trace['height']}",
        _count(len(steps), "step"),
    ]
    if len(steps) > 1:
        facts.append(_count(len(steps[1]["hypotheses"]), "hypothesis", "hypotheses"))
        facts.append(f"posterior by {'probe' if 'probe_yes' in steps[1] else 'likelihood'}")
    name = str(trace["video"]).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    room = RIGHT - MARGIN
    trained = trace["settings"].get("run", {}).get("trained", True)
    model = str(trace["model"]) + ("" if trained else ", random weights")
    model = page.fit(model, 0.35 * room, 8.5)
    page.text(MARGIN, 0.5, page.fit(name, 0.63 * room, 15, bold=True), 15, bold=True)
    page.text(RIGHT, 0.5, model, 8.5, MUTED, align="right")
    page.text(MARGIN, 0.76, " · ".join(facts), 8.5, MUTED)
    return 1.0


def _film(
    page: Sheet,
    steps: Sequence[Mapping[str, Any]],
    thumbnails: Thumbnails,
    time: _Time,
    thumb: tuple[float, float],
    moments: Sequence[int],
    top: float,
) -> float:
    """Scored frames, each tied to its time; the moments always have a place."""
    page.text(MARGIN, top + 0.14, "scored", 9, bold=True)
    page.text(MARGIN, top + 0.31, _count(len(steps), "frame"), 7.5, MUTED)
    places = _spread(range(len(steps)), _columns(thumb[0]))
    for moment in set(moments).difference(places):
        free = [j for j in range(len(places)) if places[j] not in moments]
        if free:
            places[min(free, key=lambda j: abs(places[j] - moment))] = moment
    places.sort()
    centres = [time.x(steps[i]["seconds"]) for i in places]
    for left, centre, i in zip(_row(centres, thumb[0]), centres, places, strict=True):
        colour = ACCENT if i in moments else RULE
        page.image(thumbnails.get(steps[i]["frame"]), left, top, *thumb, edge=i in moments)
        bottom = top + thumb[1]
        page.tie(left + thumb[0] / 2, bottom + 0.03, centre, bottom + 0.3, colour)
    return top + thumb[1] + 0.3


def _curve(
    page: Sheet, trace: Mapping[str, Any], time: _Time, moments: Sequence[int], top: float
) -> list[tuple[float, float]]:
    """Score over seconds from step 1 on; returns the points of the moments."""
    steps = trace["steps"][1:]
    values = [step["score"] if math.isfinite(step["score"]) else 0.0 for step in steps]
    largest = max(map(abs, values), default=0.0)
    scale = _nice(largest, ()) if largest > 1e-9 else 1.0
    floor = -scale if min(values, default=0.0) < -1e-9 else 0.0
    ceiling, base = top + 0.36, top + CURVE_HEIGHT - 0.16

    def y(value: float) -> float:
        return base - (value - floor) / (scale - floor) * (base - ceiling)

    name, unit = _score_name(trace)
    page.text(MARGIN, ceiling + 0.05, name, 9, bold=True)
    page.text(MARGIN, ceiling + 0.22, unit, 7.5, MUTED)
    if not steps:
        middle = (LEFT + RIGHT) / 2, (base + ceiling) / 2
        page.text(*middle, "one frame: nothing to compare it with", 9, MUTED, "center", "center")
        return []
    for value in (floor, (scale + floor) / 2, scale):
        page.line([LEFT, RIGHT], [y(value)] * 2, RULE, 0.6)
        page.text(LEFT - 0.07, y(value), f"{value:.3g}", 7.5, MUTED, "right", "center")
    xs, ys = [time.x(step["seconds"]) for step in steps], [y(value) for value in values]
    page.area(xs, ys, y(0.0), ACCENT)
    page.line(xs, ys, ACCENT, 1.7, zorder=3)
    page.dots(xs, ys, ACCENT, 4.2 if len(steps) <= 40 else 1.8)
    if max(values) - min(values) < 1e-9:
        page.text(RIGHT, ceiling - 0.1, "all steps score alike", 8.5, MUTED, "right")
        return []
    points = [(xs[i - 1], ys[i - 1]) for i in moments]
    for number, (i, (x, point)) in enumerate(zip(moments, points, strict=True), 1):
        page.badge(x, point - 0.2, number)
        right = x < RIGHT - 0.6
        place = x + (0.13 if right else -0.13)
        score = _number(values[i - 1])
        page.text(
            place, point - 0.2, score, 8.5, ACCENT, "left" if right else "right", "center", True
        )
    return points


def _lane(
    page: Sheet,
    label: tuple[str, str],
    colour: str,
    frames: Mapping[int, float],
    thumbnails: Thumbnails,
    time: _Time,
    thumb: tuple[float, float],
    top: float,
) -> float:
    """A tick for each frame, and pictures of evenly drawn ones, each tied to its tick."""
    page.text(MARGIN, top + 0.14, label[0], 9, colour, bold=True)
    page.text(MARGIN, top + 0.31, label[1], 7.5, MUTED)
    page.box(LEFT, top, RIGHT - LEFT, 0.2, CARD, 0.03)
    for second in frames.values():
        page.line([time.x(second)] * 2, [top + 0.03, top + 0.17], colour, 1.0, zorder=3)
    if not thumbnails:
        return top + 0.42
    columns = _columns(thumb[0])
    places = _spread(list(frames), columns)
    if any(frame not in thumbnails for frame in places):
        places = _spread([frame for frame in frames if frame in thumbnails], columns)
    centres = [time.x(frames[frame]) for frame in places]
    for left, centre, frame in zip(_row(centres, thumb[0]), centres, places, strict=True):
        page.tie(centre, top + 0.2, left + thumb[0] / 2, top + 0.43, colour)
        page.image(thumbnails.get(frame), left, top + 0.46, *thumb)
    return top + 0.46 + thumb[1] + 0.2


def _time_labels(page: Sheet, time: _Time, top: float) -> float:
    steps = (
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.5,
        1,
        2,
        5,
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
        3600,
    )
    step = _nice(time.end / 10, steps) if time.end > 0 else 1.0
    for count in range(int(time.end / step + 1e-9) + 1):
        x, label = time.x(count * step), _clock(count * step, time.end)
        page.box(x - 0.18, top - 0.07, 0.36, 0.14, PAPER)
        page.text(x, top, label, 7.5, MUTED, "center", "center")
    return top + 0.2


def _expectations(
    page: Sheet,
    trace: Mapping[str, Any],
    thumbnails: Thumbnails,
    moments: Sequence[int],
    top: float,
) -> float:
    if not moments:
        return top
    page.line([MARGIN, RIGHT], [top] * 2, RULE, 0.6)
    gap = 0.5
    width = (RIGHT - MARGIN - gap * (len(moments) - 1)) / len(moments)
    bottoms = [
        _moment(page, trace, thumbnails, i, n, MARGIN + (n - 1) * (width + gap), top + 0.2, width)
        for n, i in enumerate(moments, 1)
    ]
    return max(bottoms)


def _moment(
    page: Sheet,
    trace: Mapping[str, Any],
    thumbnails: Thumbnails,
    index: int,
    number: int,
    left: float,
    top: float,
    width: float,
) -> float:
    """One step: what it saw (frame, caption) beside what it had expected (two bars each)."""
    step = trace["steps"][index]
    names = ("KL", "kl"), ("JS", "js"), ("evidence", "evidence")
    figures = " · ".join(f"{name} {_number(step[key])}" for name, key in names)
    page.badge(left + 0.1, top + 0.1, number)
    page.text(
        left + 0.27, top + 0.1, f"at {step['seconds']:.1f} s", 11, INK, "left", "center", True
    )
    page.text(left + width, top + 0.1, figures, 8, MUTED, "right", "center")
    top += 0.46

    picture = _thumb_size(trace)[0] / _thumb_size(trace)[1]
    image_width = min(0.42 * width, math.sqrt((1.35 if width < WIDTH / 2 else 2.8) * picture))
    page.text(left, top, "It saw", 9, bold=True)
    y = top + 0.12
    if thumbnails:
        page.image(thumbnails.get(step["frame"]), left, y, image_width, image_width / picture)
        y += image_width / picture
    for line in page.wrap(step["caption"] or "(no caption)", image_width, 8.5, 5):
        y += 0.175
        page.text(left, y, line, 8.5, INK if step["caption"] else MUTED)

    x, end = left + image_width + 0.3, left + width
    page.text(x, top, "It expected", 9, bold=True)
    page.text(end - 0.42, top, "before", 8, MUTED, "right")
    page.text(end, top, "after", 8, ACCENT, "right", bold=True)
    below = top + 0.12
    texts = [*step["hypotheses"], "something else"]  # the last counts with settings.other only
    shown, rest = _by_weight(step)
    prior, posterior = step["prior"], step["posterior"]
    for i in shown:
        below = _hypothesis(page, texts[i] or "(empty)", prior[i], posterior[i], x, below, end)
    if rest:
        sums = sum(prior[i] for i in rest), sum(posterior[i] for i in rest)
        below = _hypothesis(page, f"{len(rest)} more, together", *sums, x, below, end, MUTED)
    return max(y + 0.1, below) + 0.2


def _hypothesis(
    page: Sheet,
    text: str,
    prior: float,
    posterior: float,
    left: float,
    top: float,
    right: float,
    ink: str = INK,
) -> float:
    lines = page.wrap(text, right - left - 0.85, 8.5, 3)
    for number, line in enumerate(lines):
        page.text(left, top + 0.15 + 0.165 * number, line, 8.5, ink)
    page.text(right - 0.42, top + 0.15, f"{prior:.2f}", 8.5, MUTED, "right")
    page.text(right, top + 0.15, f"{posterior:.2f}", 8.5, ACCENT, "right", bold=True)
    top += 0.22 + 0.165 * (len(lines) - 1)
    for value, colour in ((prior, BEFORE), (posterior, ACCENT)):
        page.box(left, top, right - left, 0.055, CARD)
        page.box(left, top, (right - left) * min(max(value, 0.0), 1.0), 0.055, colour)
        top += 0.07
    return top + 0.06


def _by_weight(step: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Rows of the hypotheses that are shown, as they were written, and of those that are not."""
    rows = range(len(step["prior"]))
    if len(rows) <= SHOWN_HYPOTHESES:
        return list(rows), []
    ranked = sorted(rows, key=lambda i: -max(step["prior"][i], step["posterior"][i]))
    return sorted(ranked[: SHOWN_HYPOTHESES - 1]), ranked[SHOWN_HYPOTHESES - 1 :]


def _score_name(trace: Mapping[str, Any]) -> tuple[str, str]:
    score = trace["settings"].get("score", "kl")
    units = {"kl": "KL, nats", "js": "JS, bits", "evidence": "evidence, nats"}
    return "surprise", units.get(score, str(score))
