"""report.html of a training run: every metric as a curve, and a few of the last rollouts.

One file without scripts, a network or a server. Text of the run reaches the page through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from experiments.report_page import data_uri, head, settings_table

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BASE = 52, 314, 8, 128
POINTS = 300
"""Of a curve; of a longer one, means of as many stretches are drawn."""
GROUPS = 3
"""Prompts whose answers are shown."""
PICTURES = 8  # of a video
PICTURE_SIDE = 128  # pixels

_FIRST = (
    *("loss", "reward", "reward_std", "frac_reward_zero_std", "all_correct", "all_wrong", "p_acc"),
    *("agreement", "kl", "entropy", "grad_norm", "skipped"),
)
_SECTIONS = {
    "rewards": "Rewards",
    "null_rate": "Rewards",
    "completions": "Completions",
    "eval": "Validation",
    "clip_ratio": "Policy",
    "sampling": "Policy",
}
"""By what stands before the slash; _FIRST is Learning, the rest is Other."""
_ORDER = ("Learning", "Rewards", "Validation", "Completions", "Policy", "Other")

STYLE = """
.panels { display: grid; gap: 1.4rem 1.6rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
figure { margin: 0; } figcaption { display: flex; gap: .6rem; font-size: .87rem; }
figcaption span { flex: 1; overflow-wrap: anywhere; font-weight: 550; }
.panel { display: block; width: 100%; } .panel text { fill: var(--muted); font-size: 10.5px; }
.panel line { stroke: var(--rule); } .panel polyline { fill: none; stroke-linejoin: round; }
.panel .raw { stroke: var(--before); stroke-width: 1; }
.panel .smooth { stroke: var(--accent); stroke-width: 1.8; }
.panel circle { fill: var(--accent); }
.rollout { margin-top: 1.6rem; } .rollout h3 { overflow-wrap: anywhere; }
.rollout .film img { max-width: 12.5%; cursor: default; opacity: 1; }
td.number, th.number { text-align: right; white-space: nowrap; }
"""


def html(
    lines: Sequence[Mapping[str, float]],
    rollouts: Sequence[Mapping[str, Any]],
    pictures: Mapping[tuple[int, int], UInt8[np.ndarray, "F height width 3"]],
    settings: Mapping[str, Any],
    path: str | Path,
) -> None:
    """Writes report.html of a run.

    `lines` are objects of metrics.jsonl; `rollouts` rows of a table of completions, as
    `journal.completions` makes it; `pictures` the frames of their views, by (group, view);
    `settings` the configuration. Raises OSError.
    """
    ends = (lines[0]["step"], lines[-1]["step"]) if lines else (0, 0)
    sections = _sorted(_series(lines))
    parts = [
        head("saccade: how training went", STYLE),
        _masthead(lines, settings),
        '<main class="run">\n',
        *(_section(title, own, ends) for title, own in sections.items()),
        _rollouts(rollouts, pictures),
        f"<section><details><summary>Settings</summary>{settings_table(settings)}</details>"
        "</section></main>\n</body>\n</html>\n",
    ]
    Path(path).write_bytes("".join(parts).encode("utf-8", "replace"))


def _masthead(lines: Sequence[Mapping[str, float]], settings: Mapping[str, Any]) -> str:
    done = int(lines[-1]["step"]) if lines else 0
    facts = [f"{done} of {settings['steps']} steps", str(settings["model"])]
    if "rewards" in settings:
        facts += [f"rewarded by {', '.join(settings['rewards'])}", f"seed {settings['seed']}"]
    if lines and "videos_per_hour" in lines[-1]:
        facts.append(f"{lines[-1]['videos_per_hour']:.0f} videos an hour")
    return (
        '<header class="masthead"><p class="mark">saccade</p><h1>How training went</h1>'
        f'<p class="facts">{escape(" · ".join(facts))}</p></header>\n'
    )


# Curves ------------------------------------------------------------------------------------------

Series = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
"""Steps, and what was measured there."""


def _series(lines: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """Of each metric the points that are numbers, in the order in which metrics first came."""
    names = [name for name in dict.fromkeys(n for line in lines for n in line) if name != "step"]
    found = {}
    for name in names:
        there = [line for line in lines if name in line and math.isfinite(line[name])]
        if there:
            values = np.array([[line["step"], line[name]] for line in there], np.float64)
            found[name] = values[:, 0], values[:, 1]
    return found


def _sorted(series: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """Metrics by section, in the order of the page."""

    def section(name: str) -> str:
        return "Learning" if name in _FIRST else _SECTIONS.get(name.split("/")[0], "Other")

    first = [name for name in _FIRST if name in series]
    ordered = dict.fromkeys([*first, *series])
    by_section = {
        title: {name: series[name] for name in ordered if section(name) == title}
        for title in _ORDER
    }
    return {title: own for title, own in by_section.items() if own}


def _section(title: str, series: Mapping[str, Series], ends: tuple[float, float]) -> str:
    panels = "".join(panel(name, *own, ends) for name, own in series.items())
    return f'<section><h2>{title}</h2><div class="panels">{panels}</div></section>\n'


def panel(
    name: str,
    steps: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    ends: tuple[float, float],
) -> str:
    """A metric as SVG: what was measured thin, its running mean thick; `ends` are the axis'."""
    smooth = smoothed(values)
    last = _short(smooth[-1])
    steps, values, smooth = (thinned(part) for part in (steps, values, smooth))
    low, high = float(values.min()), float(values.max())
    marks = [low, high]
    if high - low < 1e-9 * max(abs(high), 1.0):  # a flat line runs in the middle
        low, high, marks = low - 0.5, high + 0.5, [low]
    start, end = ends
    x = LEFT + (RIGHT - LEFT) * (steps - start) / max(end - start, 1.0)

    def y(value: float) -> float:
        return BASE - (BASE - TOP) * (value - low) / (high - low)

    rows = []
    for value in marks:
        at = y(value)
        rows.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        rows.append(
            f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    labels = [(f"step {start:.0f}", LEFT, "start"), (f"{end:.0f}", RIGHT, "end")]
    for label, at, anchor in labels if end > start else labels[:1]:
        rows.append(f'<text x="{at}" y="{BASE + 16}" text-anchor="{anchor}">{label}</text>')
    for kind, line in (("raw", values), ("smooth", smooth)):
        points = " ".join(f"{a:.1f},{y(b):.1f}" for a, b in zip(x, line, strict=True))
        rows.append(f'<polyline class="{kind}" points="{points}"/>')
    if len(x) == 1:
        rows.append(f'<circle cx="{x[0]:.1f}" cy="{y(values[0]):.1f}" r="3"/>')
    shown = escape(name)
    return (
        f"<figure><figcaption><span>{shown}</span>{last}</figcaption>"
        f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{shown}, at last {last}">{"".join(rows)}</svg></figure>'
    )


def smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Means over a fifteenth of the run about each point, as much of it as there is at the ends."""
    half = len(values) // 30
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def thinned(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """At most POINTS values: means of equal stretches."""
    if len(values) <= POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, POINTS)])


def _short(value: float) -> str:
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


# Rollouts ----------------------------------------------------------------------------------------


def _rollouts(
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[tuple[int, int], UInt8[np.ndarray, "F height width 3"]],
) -> str:
    """The answers to the prompts whose rewards differ most."""
    if not rows:
        return ""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)

    def spread(group: int) -> float:
        earned = [row["reward"] for row in groups[group] if row["reward"] is not None]
        return float(np.std(earned)) if earned else -1.0

    shown = sorted(groups, key=spread, reverse=True)[:GROUPS]
    parts = []
    for group in shown:
        views: dict[int, list[Mapping[str, Any]]] = {}
        for row in groups[group]:
            views.setdefault(row["view"], []).append(row)
        parts += [_view(own, pictures.get((group, view))) for view, own in views.items()]
    return (
        f'<section><h2>Rollouts</h2><p class="muted">{len(shown)} of the {len(groups)} prompts of '
        f"step {rows[0]['step']}, those whose rewards differ most.</p>{''.join(parts)}</section>\n"
    )


def _view(rows: Sequence[Mapping[str, Any]], frames: np.ndarray | None) -> str:
    """A prompt about a view of a video, and a row for each answer."""
    one = rows[0]
    kind = f"view {one['view']}" + f", {one['transform']}" * bool(one["transform"])
    film = ""
    if frames is not None and len(frames):
        places = np.linspace(0, len(frames) - 1, min(len(frames), PICTURES)).round().astype(int)
        images = "".join(
            f'<img src="{data_uri(frames[place], PICTURE_SIDE)}" alt="">' for place in places
        )
        film = f'<div class="film still">{images}</div>'
    numbers = [*(name for name in one if name.startswith("rewards/")), "reward", "advantage"]
    heads = "".join(
        f'<th scope="col" class="number">{escape(name.removeprefix("rewards/"))}</th>'
        for name in numbers
    )
    body = "".join(_answer(row, numbers) for row in rows)
    return (
        f'<div class="rollout"><h3>{escape(one["prompt"])}</h3>'
        f'<p class="muted">{escape(one["video"])}, {escape(kind)} · wanted: '
        f"{escape(one['answer'])}</p>{film}"
        f'<div class="scroll"><table><thead><tr><th scope="col">completion</th>{heads}'
        f'<th scope="col">frames</th></tr></thead><tbody>{body}</tbody></table></div></div>'
    )


def _answer(row: Mapping[str, Any], numbers: Sequence[str]) -> str:
    cells = "".join(f'<td class="number">{_number(row[name])}</td>' for name in numbers)
    said = escape(row["completion"]) or '<span class="muted">(empty)</span>'
    return f"<tr><td>{said}</td>{cells}<td>{_ranges(row['frames'])}</td></tr>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _ranges(frames: Sequence[int]) -> str:
    """Frame numbers, runs of neighbours as first-last."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][1] + 1:
            runs[-1][1] = frame
        else:
            runs.append([frame, frame])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
