"""Every score, and every baseline, at all the settings among which a validation split may choose.

The baselines of pixels have more settings to choose from than the scores of surprise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.recording import ODD_CLAIM, ODD_QUESTIONS, Records
from surprise import Settings
from surprise.baselines import FORMS, TUNABLE, centre_scores, random_scores, refined
from surprise.likelihood import Beliefs, reduce_nll, weigh

Recorded = Mapping[str, Records]
"""Records of one set of clips by the observation that the model was shown: frame, pair."""

COUNTS, TAUS, SMOOTH = (8, 4), (1.0, 0.5, 2.0), (1, 3, 5)
OTHERS = tuple(itertools.product((0.1, 0.3), (0.5, 0.1)))
"""Prior mass and likelihood of "something else"."""
_REDUCTIONS = ("mean", "sum")
_FROM = (1, 2)
"""First step that counts: at step 1 only one frame has been seen, and no motion can be known."""
_MOST_STEPS = 32  # of a clip


@dataclass(frozen=True)
class Candidate:
    """A score at one setting; `scores` gives [C, k] of C clips, step 0 left out."""

    family: str
    group: str
    """surprise; fixed, surprise at published settings; model, other uses of the model; pixels;
    chance."""
    settings: dict[str, Any]
    scores: Callable[[Recorded], np.ndarray]


def candidates(settings: Settings, observations: tuple[str, ...]) -> list[Candidate]:
    """All of them, those that are recommended first: they win ties."""
    found: list[Candidate] = []
    for observation in observations:
        found += _surprise(settings, observation)
        found += _model(observation)
    return [*found, *_pixels(observations[0]), *_chance(observations[0])]


# Surprise


def beliefs(records: Records, settings: Settings, count: int) -> Beliefs:
    """What `surprise.advance` would have believed with `count` samples: rows are C x k."""
    valid = records.valid(count)
    numbers = {name: rows.reshape(-1, rows.shape[-1]) for name, rows in records.numbers.items()}
    valid = valid.reshape(-1, valid.shape[-1])
    prior = reduce_nll(numbers["prior_nll"], numbers["tokens"], reduction=settings.reduction)
    support = numbers["probe_yes"]
    if settings.posterior == "nll":
        support = reduce_nll(
            numbers["posterior_nll"], numbers["tokens"], reduction=settings.reduction
        )
    return weigh(settings, valid, prior, support)


def _surprise(base: Settings, observation: str) -> Iterator[Candidate]:
    counts = dict.fromkeys(min(count, base.hypotheses) for count in COUNTS)
    tuned = ("posterior", "reduction", "tau", "hypotheses", "from_step")
    choices = (("probe", "nll"), _REDUCTIONS, TAUS, counts, _FROM)
    shared = [dict(zip(tuned, row, strict=True)) for row in itertools.product(*choices)]
    for switches in shared:
        yield _belief("KL", "kl", base, observation, switches)
    for switches in shared:
        yield _belief("JS", "js", base, observation, switches)
    for switches in shared:
        # A probe is the likelihood; an NLL can be taken as one in two ways.
        for likelihood in ("ratio", "posterior") if switches["posterior"] == "nll" else ():
            more = {"likelihood": likelihood}
            yield _belief("evidence", "evidence", base, observation, switches | more)
        if switches["posterior"] == "probe":
            yield _belief("evidence", "evidence", base, observation, switches)
    for (prior, likelihood), switches in itertools.product(OTHERS, shared):
        more = {"other_prior": prior, "other_likelihood": likelihood}
        yield _belief("KL + other", "kl", base, observation, switches | more, other=True)
    for family, posterior in (("KL as published", "nll"), ("KL as released", "probe")):
        switches = {"posterior": posterior, "reduction": "mean", "tau": 1.0}
        switches |= {"hypotheses": min(3, base.hypotheses), "from_step": 1}
        yield _belief(family, "kl", base, observation, switches, group="fixed")


def _belief(
    family: str,
    name: str,
    base: Settings,
    observation: str,
    switches: dict[str, Any],
    *,
    group: str = "surprise",
    other: bool = False,
) -> Candidate:
    told = base.to_dict() | {"likelihood": "ratio", "other": other} | switches
    first = told.pop("from_step") - 1
    settings = Settings.from_dict(told)

    def scores(recorded: Recorded) -> np.ndarray:
        records = recorded[observation]
        found = beliefs(records, settings, settings.hypotheses)
        return refined(vars(found)[name].reshape(records.first.shape[:2]), first=first)

    return Candidate(family, group, switches | {"observation": observation}, scores)


# Other uses of the model


def _model(observation: str) -> Iterator[Candidate]:
    """The likelihood of its own caption, and asking it outright: refined as the pixels are."""
    for relative, reduction in itertools.product((False, True), _REDUCTIONS):
        yield from _refined(
            "own caption", "model",
            {"of": "ratio" if relative else "before", "reduction": reduction,
             "observation": observation},
            lambda recorded, r=relative, how=reduction: _caption(recorded[observation], r, how),
        )  # fmt: skip
    for i, question in enumerate((ODD_CLAIM, *ODD_QUESTIONS)):
        yield from _refined(
            "zero-shot, step by step", "model", {"asked": question, "observation": observation},
            lambda recorded, i=i: recorded[observation].column("odd")[..., i],
        )  # fmt: skip
    yield from _refined(
        "zero-shot, whole clip", "model", {},
        lambda recorded: recorded[observation].column("moment"),
    )  # fmt: skip


def _caption(records: Records, relative: bool, reduction: str) -> np.ndarray:
    """-log p(caption) before the observation that it tells of, or how much less it was then."""
    nll = records.column("caption_prior_nll")
    if relative:
        nll = nll - records.column("caption_posterior_nll")
    return reduce_nll(nll, records.column("caption_tokens"), reduction=reduction)


# Pixels and chance


def _pixels(observation: str) -> Iterator[Candidate]:
    for family, settings in TUNABLE.items():
        # A second difference says nothing about the first step.
        starts = _FROM[1:] if family == "second difference" else _FROM
        rows = {family: FORMS}
        if "difference" in family:
            rows = {family: ("plain", "excess"), f"change of {family}": ("change",)}
        for (name, forms), setting in itertools.product(rows.items(), settings):
            yield from _refined(
                name, "pixels", {"of": setting},
                lambda recorded, key=(family, setting): recorded[observation].pixels[key],
                starts=starts, forms=forms,
            )  # fmt: skip


def _refined(
    family: str,
    group: str,
    settings: dict[str, Any],
    scores: Callable[[Recorded], np.ndarray],
    *,
    starts: tuple[int, ...] = _FROM,
    forms: tuple[str, ...] = FORMS,
) -> Iterator[Candidate]:
    for form, smooth, start in itertools.product(forms, SMOOTH, starts):
        yield Candidate(
            family,
            group,
            {**settings, "form": form, "smooth": smooth, "from_step": start},
            lambda recorded, form=form, smooth=smooth, start=start: refined(
                scores(recorded), form=form, smooth=smooth, first=start - 1
            ),
        )


def _chance(observation: str) -> Iterator[Candidate]:
    """Scores that look at nothing; the last knows when things tend to happen, from validation."""

    def drawn(recorded: Recorded) -> np.ndarray:
        records = recorded[observation]
        count = len(records.seconds)
        rows = [random_scores(count, seed=i)[1:] for i in range(len(records.lines))]
        return np.stack(rows)

    def middle(recorded: Recorded) -> np.ndarray:
        records = recorded[observation]
        return np.tile(centre_scores(len(records.seconds))[1:], (len(records.lines), 1))

    def constant(recorded: Recorded, step: int) -> np.ndarray:
        records = recorded[observation]
        steps = np.arange(1, len(records.seconds))
        return np.tile((steps == step).astype(np.float64), (len(records.lines), 1))

    yield Candidate("random", "chance", {}, drawn)
    yield Candidate("always the middle", "chance", {}, middle)
    for step in range(1, _MOST_STEPS):
        yield Candidate(
            "always the same step",
            "chance",
            {"step": step},
            lambda recorded, step=step: constant(recorded, step),
        )
