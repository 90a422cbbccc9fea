"""report.html: every scored video in one self-contained file, without a network or a server.

Python writes what is read without JavaScript (the list, failures, settings) and the data as JSON;
the script in report_page.py draws the video that is looked at. Text from traces reaches the
page through `escape` here and through textContent there, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figure import Thumbnails, figure, frames_shown, seconds_of, uniform_frames
from experiments.report_page import GLOSSARY, SCRIPT, TOOLS, data_uri, head, settings_table

__all__ = ["figure", "frames_shown", "html"]

PICTURES = 2400
"""Thumbnails in one report, about 5 kB each: with more videos each video keeps fewer."""
PICTURE_SIDE = 288  # pixels
FAILURE = ("video", "stage", "error")


def html(
    traces: Sequence[Mapping[str, Any]],
    thumbnails: Iterable[Thumbnails],
    failures: Sequence[Mapping[str, Any]],
    path: str | Path,
    note: str = "",
) -> None:
    """Writes report.html.

    `traces` are objects of trace.jsonl; `thumbnails`, one mapping a trace in the same order (a
    generator will do), maps frame indices to uint8 [h, w, 3]; `failures` are objects of
    failures.jsonl (video, stage, error); `note` is a paragraph at the head of the page.

    The traces are embedded whole, about 1 kB a step. Of the thumbnails each video keeps at most
    PICTURES // len(traces), those of the highest scores and of an even spread first (500 videos: 4
    each). Raises ValueError for unequal lengths or a number that isn't finite, and OSError.
    """
    pictures = [
        _pictures(trace, given, PICTURES // len(traces))
        for trace, given in zip(traces, thumbnails, strict=True)
    ]
    data = {
        "traces": list(traces),
        "uniform": [_uniform(trace) for trace in traces],
        "thumbnails": pictures,
    }
    parts = [
        head("saccade: what surprised the model"),
        _masthead(traces, failures, note),
        _videos(traces),
        _failures(failures),
        _settings(traces),
        GLOSSARY,
        f'<script type="application/json" id="data">{_json(data)}</script>\n',
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
    ]
    # File names may hold bytes that are no UTF-8; they come as lone surrogates.
    Path(path).write_bytes("".join(parts).encode("utf-8", "replace"))


def _json(data: Any) -> str:
    """JSON that no text inside can end: each < (of `</script` or `<!--`) becomes an escape."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _uniform(trace: Mapping[str, Any]) -> dict[str, list] | None:
    if trace["selected"] is None:
        return None
    frames = uniform_frames(trace)
    return {"frames": frames, "seconds": seconds_of(trace, frames)}


def _pictures(trace: Mapping[str, Any], thumbnails: Thumbnails, most: int) -> dict[str, str]:
    """Data URIs by frame index, at most `most`, the worthiest first."""
    steps = trace["steps"]
    best = sorted(range(1, len(steps)), key=lambda i: -steps[i]["score"])
    even = np.linspace(0, max(len(steps) - 1, 0), max(most // 2, 1)).round().astype(int)
    order = [*best[: max(most // 2, 1)], *(even.tolist() if steps else []), *best]
    wanted = dict.fromkeys([steps[i]["frame"] for i in order] + sorted(thumbnails))
    kept = [frame for frame in wanted if frame in thumbnails][:most]
    return {str(frame): data_uri(thumbnails[frame], PICTURE_SIDE) for frame in sorted(kept)}


def _masthead(
    traces: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]], note: str
) -> str:
    models = sorted({str(trace["model"]) for trace in traces})
    seconds = sum(trace["seconds"] for trace in traces)
    facts = [
        f"{len(traces)} video{'s' * (len(traces) != 1)}",
        f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.1f} s",
        f"{sum(len(trace['steps']) for trace in traces)} steps",
        *models[:3],
    ]
    if failures:
        facts.append(f'<a href="#failures">{len(failures)} failed</a>')
    kept = [fact if fact.startswith("<a ") else escape(fact) for fact in facts]
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        '<header class="masthead"><p class="mark">saccade</p><h1>What surprised the model</h1>'
        f'<p class="facts">{" · ".join(kept)}</p>{words}</header>\n'
    )


def _videos(traces: Sequence[Mapping[str, Any]]) -> str:
    if not traces:
        return '<main><p class="note">No video has been scored.</p></main>\n'
    rows = "".join(_row(number, trace) for number, trace in enumerate(traces))
    tools = TOOLS if len(traces) > 6 else ""
    return (
        f'<main class="desk"><nav aria-label="Videos">{tools}<ol id="list">{rows}</ol></nav>\n'
        '<article id="video"><noscript><p class="note">The list, the failures and the settings '
        "can be read as they are; the curve of a video needs JavaScript.</p></noscript>"
        "</article></main>\n"
    )


def _row(number: int, trace: Mapping[str, Any]) -> str:
    """One entry of the list: name, duration, peak, and the curve in small."""
    steps = trace["steps"][1:]
    scores = [step["score"] for step in steps]
    peak = max(scores, default=0.0)
    if peak - min(scores, default=0.0) > 1e-9:
        words = f"peak {peak:.2g} at {steps[scores.index(peak)]['seconds']:.1f} s"
    else:
        words = "all steps score alike" if steps else "one frame"
    end = max([trace["seconds"], *(step["seconds"] for step in steps)]) or 1.0
    top = peak if peak > 1e-9 else 1.0
    points = " ".join(
        f"{100 * step['seconds'] / end:.1f},{22 - 20 * max(step['score'], 0) / top:.1f}"
        for step in steps
    )
    # A long file name may break behind its joints.
    name = escape(_name(trace)).replace("_", "_<wbr>").replace("-", "-<wbr>")
    return (
        f'<li data-peak="{peak:.6f}"><a href="#v{number}"><span class="name">{name}</span>'
        f'<span class="peak">{trace["seconds"]:.1f} s · {words}</span>'
        '<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{points}"/></svg></a></li>'
    )


def _name(trace: Mapping[str, Any]) -> str:
    return str(trace["video"]).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return ""
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(str(failure[key]))}</td>' for key in FAILURE)}</tr>"
        for failure in failures
    )
    heads = "".join(f'<th scope="col">{key}</th>' for key in FAILURE)
    return (
        f'<section id="failures"><h2>Failures</h2><div class="scroll"><table><thead><tr>{heads}'
        f"</tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    )


def _settings(traces: Sequence[Mapping[str, Any]]) -> str:
    """One table for each set of settings that occurs."""
    groups: dict[str, int] = {}
    for trace in traces:
        text = json.dumps(trace["settings"], sort_keys=True)
        groups[text] = groups.get(text, 0) + 1
    tables = []
    for text, count in groups.items():
        of = f" · {count} of {len(traces)} videos" if len(groups) > 1 else ""
        tables.append(
            f"<details><summary>Settings{of}</summary>{settings_table(json.loads(text))}</details>"
        )
    return f'<section id="settings">{"".join(tables)}</section>\n' if tables else ""
