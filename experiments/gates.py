"""Does a model know the toy world? What must hold before any figure of its surprise is quoted.

Everything is asked on fresh clips, and once more of another clip's video: a model that answers as
well without seeing has learned the words and not the world.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from data.toyquestions import prompt, questions
from data.toyscene import EVENTS, FPS, VERBS, Scene, actions, expected, verb
from data.toytasks import CAPTION_REQUEST
from data.toywords import caption, clause, description, is_odd, statements
from data.toyworld import Clip, make
from experiments.examiner import Examiner
from experiments.localise import Row, spread
from experiments.progress import Progress
from surprise import Context, Prompts
from surprise.hypotheses import same_form
from surprise.localisation import Estimate, bootstrap
from surprise.schedule import observation, window
from surprise.settings import Settings

T = TypeVar("T")

GATES = {
    "event_true": (0.8, 1.0),
    "event_balanced_swapped": (0.4, 0.6),
    "last_frame_event": (0.7, 1.0),
    "next_statement": (0.9, 1.0),
    "words": (0.8, 1.0),
    "letters": (0.8, 1.0),
    "caption_event": (0.7, 1.0),
}
"""The least and the most that a figure may be."""
FAR = 1_000_000
"""Clips from here on are none that scores are measured on."""
_CLAIMS = 8  # asked about a step
_SENTENCE_TOKENS, _CAPTION_TOKENS, _WORD_TOKENS = 40, 80, 16


def gates(
    examiner: Examiner,
    settings: Settings,
    *,
    windows: int = 160,
    clips: int = 240,
    seed: int = 0,
    split: str = "test",
    level: str = "full",
) -> tuple[dict[str, Estimate], list[Row]]:
    """Figures of what the model knows, and rows with the gates that they must pass.

    `windows` steps at events and as many plain ones; `clips` whole clips with their captions and
    questions. Clips are numbered from the far end, so that they are none of those that scores are
    measured on.
    """
    values: dict[str, list[float]] = {}
    if windows:
        numbers = range(FAR, FAR + windows)
        odd = [make(n, seed=seed, split=split, level=level, kinds=EVENTS) for n in numbers]
        values |= _at_steps(examiner, settings, odd, seed)
    if clips:
        numbers = range(2 * FAR, 2 * FAR + clips)
        mixed = [make(n, seed=seed, split=split, level=level) for n in numbers]
        values |= _of_clips(examiner, settings.prompts, mixed, seed)
    figures = {name: bootstrap(found) for name, found in sorted(values.items())}
    if clips:
        for by in ("words", "letters"):
            for suffix in ("", "_swapped"):
                figures[by + suffix] = _over_kinds(figures, values, by, suffix)
    return figures, [_gate(name, figures) for name in figures if not name.endswith("_swapped")]


def _gate(name: str, figures: dict[str, Estimate]) -> Row:
    """A row of the table: a figure, that of the swapped video, and the gate of either."""
    both = {"share": figures[name]}
    if f"{name}_swapped" in figures:
        both["swapped"] = figures[f"{name}_swapped"]
    row: Row = {"part": "gates", "name": name, "n": figures[name].n} | spread(both)
    for key, estimate in zip((name, f"{name}_swapped"), both.values(), strict=False):
        if key in GATES:
            least, most = GATES[key]
            row |= {"gate": f"{key}: {least} to {most}", "passed": least <= estimate.value <= most}
    return row


def passed(figures: dict[str, Estimate]) -> bool:
    """Whether all gates are passed."""
    return all(least <= figures[name].value <= most for name, (least, most) in GATES.items())


def _parts(items: Sequence[T], size: int, unit: str) -> Iterator[Sequence[T]]:
    """A batch of them at a time, with progress."""
    with Progress(len(items), unit, about="gates") as progress:
        for start in range(0, len(items), size):
            part = items[start : start + size]
            yield part
            progress.add(len(part))


# Single steps


@dataclass(frozen=True)
class _Row:
    """A step of a clip, and what is claimed about it: text, truth, and the figure it counts for."""

    clip: Clip
    step: int
    at_event: bool
    claims: tuple[tuple[str, bool, str], ...]


def _at_steps(
    examiner: Examiner, settings: Settings, clips: Sequence[Clip], seed: int
) -> dict[str, list[float]]:
    rng = np.random.default_rng([seed, len(clips)])
    rows = []
    for i, clip in enumerate(clips):
        after = clips[(i + 1) % len(clips)].scene.events[0].kind
        rows.append(_event_row(clip, after, rng))
        rows.append(_plain_row(clip, rng))
    values: dict[str, list[float]] = {}
    for part in _parts(rows, examiner.batch, "step"):
        _ask_steps(examiner, settings, part, values)
    for suffix in ("", "_swapped"):
        pairs = zip(values[f"event_true{suffix}"], values[f"event_false{suffix}"], strict=True)
        values[f"event_balanced{suffix}"] = [(true + 1 - false) / 2 for true, false in pairs]
    return values


def _event_row(clip: Clip, other: str, rng: np.random.Generator) -> _Row:
    """Claims at an event: it, another event of the same object, its old motion, and some more.

    The kinds of the wrong events are those of the right ones of other clips, so that no word is
    right more often than wrong.
    """
    scene, event = clip.scene, clip.scene.events[0]
    step, i = event.step, event.object
    able = statements(scene, step)
    doing = actions(scene)[i][step]
    own = {clause(scene, i, step, s.predicate): s for s in able}
    wrong = [text for text, s in own.items() if not s.true and is_odd(s.predicate)]
    alike = [text for text in wrong if VERBS[other] == verb(own[text].predicate)] or wrong
    usual = clause(scene, i, step, expected(scene, step)[i] or "stays still")
    refuted = usual if usual in own and not own[usual].true else ""
    claims = (
        (clause(scene, i, step, doing), True, "event_true"),
        (str(rng.choice(alike)) if alike else "", False, "event_false"),
        (refuted, False, "old_motion"),
        *_some(able, rng, _CLAIMS - 3),
    )
    return _Row(clip, step, True, claims)


def _plain_row(clip: Clip, rng: np.random.Generator) -> _Row:
    """A step from 2 on at which nothing odd happens; at step 1 no way can be known."""
    scene = clip.scene
    doing = actions(scene)
    steps = [t for t in range(2, scene.steps) if not any(is_odd(row[t]) for row in doing)]
    step = int(rng.choice(steps))
    return _Row(clip, step, False, _some(statements(scene, step), rng, _CLAIMS))


def _some(able, rng: np.random.Generator, count: int) -> tuple[tuple[str, bool, str], ...]:
    """Statements to be counted by their verb, right and wrong ones alike often where both are."""
    picked = []
    for n in range(count):
        kind = [s for s in able if s.true == (n % 2 == 0)]
        if not kind:
            picked.append(("", False, ""))
            continue
        predicates = sorted({s.predicate for s in kind})
        predicate = predicates[rng.integers(len(predicates))]
        among = [s for s in kind if s.predicate == predicate]
        one = among[rng.integers(len(among))]
        word = verb(predicate).replace(" ", "_")
        picked.append((one.text, one.true, f"word_{word}_{'true' if one.true else 'false'}"))
    return tuple(picked)


def _ask_steps(
    examiner: Examiner, settings: Settings, rows: Sequence[_Row], values: dict[str, list[float]]
) -> None:
    prompts = settings.prompts
    by_clip: dict[str, list[_Row]] = {}
    for row in rows:
        by_clip.setdefault(row.clip.scene.id, []).append(row)
    for id, own in by_clip.items():
        views = [window(row.step, settings.window) for row in own]
        views += [observation(row.step, settings.observation) for row in own]
        frames = own[0].clip.frames
        examiner.show(id, frames, np.arange(len(frames)) / FPS, views, shown=settings.window)
    contexts = [
        Context(r.clip.scene.id, r.step, prompts.system, "", window(r.step, settings.window))
        for r in rows
    ]
    before = examiner.look(contexts)
    told = {
        name: examiner.answer(before, [text] * len(rows), max_tokens=_SENTENCE_TOKENS)
        for name, text in (("prediction", prompts.predict), ("statement", prompts.statement))
    }
    after = examiner.observe(before, [observation(r.step, settings.observation) for r in rows])
    seen = examiner.answer(after, [prompts.caption] * len(rows), max_tokens=_SENTENCE_TOKENS)
    for i, row in enumerate(rows):
        truth = same_form(description(row.clip.scene, row.step))
        at = "event" if row.at_event else "plain"
        _count(values, f"last_frame_{at}", same_form(seen[i]) == truth)
        if not row.at_event:
            for name, texts in told.items():
                _count(values, f"next_{name}", same_form(texts[i]) == truth)
    yes = _believed(examiner, settings, after, rows)
    # Once more of another clip's video: its event for an event, rows going by twos.
    shift = 2 if len(rows) > 2 else 1
    asked_of = [(i - shift) % len(rows) for i in range(len(rows))]  # whose video row i is asked of
    order = np.argsort(asked_of)
    swapped = _believed(examiner, settings, after, [rows[i] for i in order])[asked_of]
    for found, suffix in ((yes, ""), (swapped, "_swapped")):
        for row, believed in zip(rows, found, strict=True):
            for (text, true, name), value in zip(row.claims, believed, strict=True):
                if name == "old_motion" and text:
                    _count(values, f"old_motion_refuted{suffix}", 1 - value)
                elif name.startswith("event_"):  # in pairs, also where there is no wrong one
                    _count(values, name + suffix, value if text else np.nan)
                elif text:
                    _count(values, name + suffix, value)
                    _count(values, f"claims{suffix}", value == true)
    for id in by_clip:
        examiner.drop(id)


def _believed(examiner: Examiner, settings: Settings, state, rows: Sequence[_Row]) -> np.ndarray:
    """1 where P(yes) of a row's claim is above one half, [rows, claims]."""
    texts = [
        [settings.prompts.probe_text(text) if text else "" for text, _, _ in row.claims]
        for row in rows
    ]
    return (examiner.p_yes(state, texts, settings.yes, settings.no) > 0.5).astype(np.float64)


def _count(values: dict[str, list[float]], name: str, value: float | bool) -> None:
    values.setdefault(name, []).append(float(value))


# Whole clips


def _of_clips(
    examiner: Examiner, prompts: Prompts, clips: Sequence[Clip], seed: int
) -> dict[str, list[float]]:
    """Captions, and one question of each kind that a clip answers, by word and by letter."""
    values: dict[str, list[float]] = {}
    for part in _parts(clips, examiner.batch, "clip"):
        for clip in part:
            steps = clip.scene.steps
            views, seconds = [tuple(range(steps))], np.arange(steps) / FPS
            examiner.show(clip.scene.id, clip.frames, seconds, views, shown=steps)
        contexts = [
            Context(c.scene.id, 0, prompts.system, "", tuple(range(c.scene.steps))) for c in part
        ]
        state = examiner.look(contexts)
        texts = examiner.answer(state, [CAPTION_REQUEST] * len(part), max_tokens=_CAPTION_TOKENS)
        for i, clip in enumerate(part):
            if clip.scene.events:
                other = texts[(i + 1) % len(part)]
                _count(values, "caption_event", _tells(texts[i], clip.scene))
                _count(values, "caption_event_swapped", _tells(other, clip.scene))
        _ask_clips(examiner, state, part, seed, values)
        for clip in part:
            examiner.drop(clip.scene.id)
    return values


def _tells(text: str, scene: Scene) -> bool:
    """Whether a caption says what is odd, word for word, and nothing else that would be."""
    return _oddities(text) == _oddities(caption(scene))


def _oddities(text: str) -> set[str]:
    sentences = (same_form(part) for part in text.split("."))
    return {sentence for sentence in sentences if sentence.startswith("then ")}


def _ask_clips(
    examiner: Examiner, state, clips: Sequence[Clip], seed: int, values: dict[str, list[float]]
) -> None:
    asked = []
    for clip in clips:
        by_task = {}
        for example in questions(clip, seed=seed):
            by_task.setdefault(example.task, example)
        asked.append(list(by_task.values()))
    for by in ("word", "letter"):
        for n in range(max(map(len, asked))):
            own = [prompt(row[n], by=by) if n < len(row) else ("", "") for row in asked]
            turned = [own[(i + 1) % len(own)] for i in range(len(own))]
            for suffix, of, shift in (("", own, 0), ("_swapped", turned, 1)):
                answers = examiner.answer(state, [text for text, _ in of], max_tokens=_WORD_TOKENS)
                for i, (answer, (text, right)) in enumerate(zip(answers, of, strict=True)):
                    if text:
                        task = asked[(i + shift) % len(asked)][n].task
                        good = same_form(answer) == same_form(right)
                        _count(values, f"{by}s_{task}{suffix}", good)


def _over_kinds(
    figures: dict[str, Estimate], values: dict[str, list[float]], by: str, suffix: str
) -> Estimate:
    """The mean over kinds of questions, each counting alike, and its interval."""
    kinds = [
        name
        for name in values
        if name.startswith(f"{by}_") and name.endswith("_swapped") == bool(suffix)
    ]
    rng = np.random.default_rng(0)
    drawn = np.zeros(2_000)
    for name in kinds:
        found = np.array(values[name])
        drawn += found[rng.integers(0, len(found), (len(drawn), len(found)))].mean(-1)
    low, high = np.percentile(drawn / len(kinds), [2.5, 97.5])
    value = float(np.mean([figures[name].value for name in kinds]))
    return Estimate(value, float(low), float(high), sum(figures[name].n for name in kinds))
