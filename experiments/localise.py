"""Scores against the times of events: settings chosen on one set of videos, reported on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.toyscene import FPS
from experiments.candidates import Candidate, Recorded
from experiments.recording import Records
from surprise.localisation import (
    Estimate,
    bootstrap,
    diversity,
    hit,
    iou,
    paired,
    released_coverage,
    released_hit,
    released_iou,
    released_truth,
    spearman,
    step_auroc,
    word_vectors,
)

Row = dict[str, Any]
Events = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Video:
    """When something happens in a video whose K frames are scored."""

    seconds: np.ndarray
    """Of each of the K frames."""
    events: Events
    """What a hit is measured by; a moment has both ends equal."""
    windows: Events
    """What IoU is measured by."""
    length: float
    """Seconds."""
    kind: str = ""
    oops: bool = True
    """The released code's rule of what is true: that of Oops!."""

    @property
    def truth(self) -> np.ndarray:
        """Which of the K frames belong to an event; the nearest, where none does."""
        return released_truth(self.seconds, self.events, length=self.length)


def videos(records: Records) -> list[Video]:
    """The truth of recorded clips. An event that is undone after a moment has a length.

    A moment is the first step that shows the change, which fell into the segment that ends there: a
    window begins with that segment, and ends before that of what undid it.
    """
    found = []
    for line in records.lines:
        moments = [step / FPS for step in line["moments"]]
        found.append(
            Video(
                seconds=np.array(line["seconds"]),
                events=tuple((at, at) for at in moments),
                windows=((moments[0] - 1 / FPS, moments[-1] - 1 / FPS),),
                length=len(line["seconds"]) / FPS,
                kind=line["kind"],
            )
        )
    return found


# One score


def whole(scores: np.ndarray) -> np.ndarray:
    """Scores of all K frames, from those of steps 1 on: step 0, which observes nothing, is last."""
    return np.concatenate([scores.min(-1, keepdims=True), scores], -1)


def hits(scores: Sequence[np.ndarray], truth: Sequence[Video], delta: float) -> np.ndarray:
    """1 where a video's best frame lies within `delta` seconds of an event, else 0: [videos]."""
    pairs = zip(scores, truth, strict=True)
    return np.array([float(hit(row, v.seconds, v.events, delta=delta)) for row, v in pairs])


def metrics(
    scores: Sequence[np.ndarray], truth: Sequence[Video], deltas: Mapping[str, float]
) -> dict[str, Estimate]:
    """Every metric of one score over videos, scores [K] each; `deltas` names seconds.

    IoU and coverage ask for scores from zero up, which log-likelihood ratios need not be: where a
    video's lowest is below zero, they are taken above that.
    """
    values: dict[str, list[float]] = {}
    for row, video in zip(scores, truth, strict=True):
        one = {name: hit(row, video.seconds, video.events, delta=d) for name, d in deltas.items()}
        above = row - min(row.min(), 0)
        lax = released_truth(video.seconds, video.events, length=video.length, oops=video.oops)
        one["spearman"] = spearman(row[1:], video.truth[1:].astype(int))
        one["iou"] = iou(above, video.seconds, video.windows)
        for name, delta in deltas.items():
            one[f"released_{name}"] = released_hit(row, video.seconds, lax, delta=delta)
        one["released_iou"] = released_iou(row, video.seconds, lax)
        one["released_coverage"] = released_coverage(above, lax)
        for name, value in one.items():
            values.setdefault(name, []).append(float(value))
    found = {name: bootstrap(of) for name, of in values.items()}
    first = {name: found.pop(name) for name in deltas}
    auroc = step_auroc([row[1:] for row in scores], [video.truth[1:] for video in truth])
    return first | {"auroc": auroc} | found


# Settings by validation


@dataclass(frozen=True)
class Chosen:
    """The best setting of a family by the validation videos, and how many there were."""

    candidate: Candidate
    validation: float
    """Its share of hits there."""
    tried: int


def choose(
    found: Sequence[Candidate], recorded: Recorded, truth: Sequence[Video], delta: float
) -> tuple[dict[str, Chosen], list[float]]:
    """The setting of each family with most hits, ties to the first; and the hits of all."""
    shares = [float(hits(whole(c.scores(recorded)), truth, delta).mean()) for c in found]
    best: dict[str, Chosen] = {}
    for candidate, share in zip(found, shares, strict=True):
        before = best.get(candidate.family)
        tried = 1 if before is None else before.tried + 1
        if before is None or share > before.validation:
            best[candidate.family] = Chosen(candidate, share, tried)
        else:
            best[candidate.family] = Chosen(before.candidate, before.validation, tried)
    return best, shares


def best_of(group: str, chosen: Mapping[str, Chosen]) -> str:
    """The family of a group that did best on the validation videos."""
    able = [family for family, one in chosen.items() if one.candidate.group == group]
    return max(able, key=lambda family: chosen[family].validation)


# The report of a level

STEPS = {"acc0": 0.0, "acc1": 1 / FPS}
"""Hits on the very step, and within one step of it."""


@dataclass(frozen=True)
class Report:
    """What one level of the toy world says: figures, rows of tables, and the settings chosen."""

    figures: dict[str, Estimate]
    table: list[Row]
    chosen: dict[str, Chosen]


def report(level: str, found: Sequence[Candidate], validation: Recorded, test: Recorded) -> Report:
    """Chooses on the validation clips, and measures on the test clips, once."""
    records = next(iter(test.values()))
    tuned_by = videos(next(iter(validation.values())))
    truth = videos(records)
    chosen, shares = choose(found, validation, tuned_by, STEPS["acc1"])
    scores = {family: whole(one.candidate.scores(test)) for family, one in chosen.items()}
    hit_by = {family: hits(rows, truth, STEPS["acc1"]) for family, rows in scores.items()}
    table = []
    for family, one in chosen.items():
        head = {"part": "localisation", "level": level, "score": family}
        head |= {"group": one.candidate.group, "n": len(truth)}
        of = metrics(scores[family], truth, STEPS)
        tail = {"validation": one.validation, "tried": one.tried, "settings": told(one.candidate)}
        table.append(head | spread(of) | tail)
    table += _by_kind(level, hit_by, truth)
    best = {group: best_of(group, chosen) for group in ("surprise", "model", "pixels")}
    differences = {
        "surprise_minus_pixel": (best["surprise"], best["pixels"]),
        "surprise_minus_model": (best["surprise"], best["model"]),
        "surprise_minus_caption": (best["surprise"], "own caption"),
        "evidence_minus_kl": ("evidence", "KL"),
        "other_minus_kl": ("KL + other", "KL"),
    }
    gains = {name: paired(hit_by[a], hit_by[b]) for name, (a, b) in differences.items()}
    table += [
        {"part": "differences", "level": level, "name": name, "one": a, "other": b}
        | spread({"acc1": gains[name]})
        for name, (a, b) in differences.items()
    ]
    table += _by_setting(level, found, shares, test, truth)
    figures = {
        "surprise_acc1": bootstrap(hit_by[best["surprise"]]),
        "best_pixel_acc1": bootstrap(hit_by[best["pixels"]]),
        "best_model_acc1": bootstrap(hit_by[best["model"]]),
        "random_acc1": bootstrap(hit_by["random"]),
        **{f"{_NAMES[family]}_acc1": bootstrap(hit_by[family]) for family in _NAMES},
        **gains,
        **_hypotheses(records),
    }
    return Report(figures, table, chosen)


_NAMES = {"KL": "kl", "JS": "js", "evidence": "evidence", "KL + other": "other"}


def _by_kind(level: str, hit_by: Mapping[str, np.ndarray], truth: Sequence[Video]) -> list[Row]:
    """Hits within one step for each kind of event."""
    kinds = np.array([video.kind for video in truth])
    return [
        {"part": "kinds", "level": level, "score": family}
        | {kind: float(found[kinds == kind].mean()) for kind in sorted(set(kinds.tolist()))}
        for family, found in hit_by.items()
    ] + [
        {"part": "kinds", "level": level, "score": "n"}
        | {kind: int((kinds == kind).sum()) for kind in sorted(set(kinds.tolist()))}
    ]


def _by_setting(
    level: str,
    found: Sequence[Candidate],
    shares: Sequence[float],
    test: Recorded,
    truth: Sequence[Video],
) -> list[Row]:
    """What each switch of surprise does: one value of it held, the rest chosen on validation."""
    best: dict[tuple[str, str, Any], tuple[float, Candidate]] = {}
    for candidate, share in zip(found, shares, strict=True):
        for name, value in candidate.settings.items() if candidate.group == "surprise" else ():
            key = (candidate.family, name, value)
            if key not in best or share > best[key][0]:
                best[key] = (share, candidate)
    switches = {(family, name) for family, name, _ in best}
    several = {switch for switch in switches if sum(key[:2] == switch for key in best) > 1}
    families = list(dict.fromkeys(candidate.family for candidate in found))
    rows = []
    for key in sorted(best, key=lambda key: (families.index(key[0]), key[1], str(key[2]))):
        (family, name, value), (share, candidate) = key, best[key]
        if (family, name) in several:
            acc = bootstrap(hits(whole(candidate.scores(test)), truth, STEPS["acc1"]))
            row = {"part": "switches", "level": level, "score": family}
            row |= {"switch": name, "value": str(value)} | spread({"acc1": acc})
            rows.append(row | {"validation": share, "settings": told(candidate)})
    return rows


def _hypotheses(records: Records) -> dict[str, Estimate]:
    """How hypotheses differ, and how often the observation refutes them all (P(yes) < 1/2)."""
    count = records.first.shape[-1]
    valid = records.valid(count)
    varied, events, plain = [], [], []
    refuted = ((records.numbers["probe_yes"] < 0.5) | ~valid).all(-1) & valid.any(-1)
    for c, line in enumerate(records.lines):
        at_event = np.isin(np.arange(1, len(line["seconds"])), line["moments"])
        each = [
            diversity(word_vectors([text for text in texts if text])) for texts in records.texts[c]
        ]
        each = [value for value in each if not np.isnan(value)]
        varied.append(np.mean(each) if each else np.nan)
        events.append(refuted[c][at_event].mean() if at_event.any() else np.nan)
        plain.append(refuted[c][~at_event].mean())
    return {
        "diversity": bootstrap(varied),
        "distinct": bootstrap(valid.sum(-1).mean(-1)),
        "all_refuted_event": bootstrap(events),
        "all_refuted_plain": bootstrap(plain),
    }


# Rows


def spread(found: Mapping[str, Estimate]) -> Row:
    """Estimates as NAME, NAME_low and NAME_high; None for what there is not."""
    row: Row = {}
    for name, estimate in found.items():
        for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
            row[name + end] = None if np.isnan(value) else value
    return row


def told(candidate: Candidate) -> str:
    """A candidate's settings in a few words."""
    return ", ".join(f"{name} {value}" for name, value in candidate.settings.items())


def flat(figures: Mapping[str, Estimate]) -> Row:
    """Estimates as results.json has them: NAME, NAME_low, NAME_high and NAME_n."""
    return spread(figures) | {f"{name}_n": estimate.n for name, estimate in figures.items()}
