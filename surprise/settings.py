"""Every switch of SPIKE in one frozen record: checked when made, written into each trace."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surprise.hypotheses import Prompts

_CHOICES = {
    "schedule": ("paper", "old", "new", "fixed"),
    "observation": ("frame", "pair"),
    "history": ("captions", "summary", "none"),
    "posterior": ("nll", "probe"),
    "reduction": ("mean", "sum"),
    "likelihood": ("posterior", "ratio"),
    "score": ("kl", "js", "evidence"),
    "method": ("surprise", "uniform", "linspace_half", "one_per_interval", "top"),
    "segments": ("ends_at", "equal"),
}
_AT_LEAST = {
    "seed": 0,
    "steps": 2,
    "cap": 2,
    "min_frames": 0,
    "window": 1,
    "history_words": 1,
    "caption_tokens": 0,
    "summary_tokens": 1,
    "hypotheses": 1,
    "hypothesis_tokens": 1,
    "top_k": 0,
    "budget": 1,
}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list of texts",
}
_POSITIVE = ("temperature", "tau", "frames_tau")


class SettingsError(ValueError):
    """A setting that can't be served; the message is one line and names it."""


@dataclass(frozen=True)
class Settings:
    """The switches of the surprise loop and of the frame sampler, at their recommended values.

    Raises SettingsError for a value out of range, an unknown choice or two that contradict.
    """

    seed: int = 0
    """Of the run; folded with the video's id, the step and the sample."""

    # Time steps
    schedule: str = "paper"
    """How the number of steps K follows from the duration: paper (App. C.2) | old | new | fixed."""
    steps: int = 32
    """K of the schedule `fixed`."""
    cap: int = 128
    """K is never more than this."""
    min_frames: int = 0
    """K is never less than this, whatever the duration (the released code: 32 on Oops)."""
    window: int = 4
    """Frames W shown before the observation; the first windows of a video are shorter."""
    observation: str = "frame"
    """The observation of step t: `frame` (t,) or `pair` (t-1, t)."""

    # History
    history: str = "captions"
    """captions: their text, the oldest dropped past `history_words`; summary: rewritten by the
    model past `history_words`; none."""
    history_words: int = 200
    caption_tokens: int = 30
    """0 writes no captions, which needs history `none`."""
    caption_temperature: float = 0.0
    """0 is greedy."""
    summary_tokens: int = 80

    # Hypotheses
    hypotheses: int = 3
    """Sampled a step, N."""
    hypothesis_tokens: int = 25
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    """0 means no limit."""
    jitter: bool = False
    """Per sample, temperature +-0.1 and top_p +-0.05, uniform, as the released code does."""
    dedup: bool = True
    """Leaves a repeated hypothesis out; the count is in the trace either way."""

    # Beliefs
    posterior: str = "nll"
    """nll: softmax(-NLL / tau) after the observation (paper, eq. 2); probe: Bayes' rule with P(yes)
    (the released code)."""
    reduction: str = "mean"
    """Of a hypothesis' token NLLs."""
    tau: float = 1.0
    likelihood: str = "posterior"
    """In the `nll` form, what evidence multiplies the prior with: posterior, exp(-NLL / tau) after
    the observation; ratio, that over its value before (then Bayes' rule gives eq. 2)."""
    other: bool = False
    """Adds the hypothesis "something else"."""
    other_prior: float = 0.1
    other_likelihood: float = 0.5
    yes: tuple[str, ...] = ("Yes", "yes", " Yes", " yes")
    """Tokens whose probabilities P(yes) adds up; `no` likewise."""
    no: tuple[str, ...] = ("No", "no", " No", " no")
    score: str = "kl"
    """Which of kl (nats), js (bits) and evidence (nats) is the score."""

    # Frames chosen by the score
    budget: int = 64
    method: str = "surprise"
    frames_tau: float = 0.7
    refill: bool = False
    """Draws until exactly `budget` distinct frames are there."""
    segments: str = "ends_at"
    """ends_at: score i belongs to the time that ends at step i (paper); equal: to interval i of K
    equal ones (released code)."""
    gumbel: bool = False
    """Adds Gumbel noise to the scores first (the later released code)."""

    prompts: Prompts = field(default_factory=Prompts)

    def __post_init__(self):
        values = vars(self)
        for name, choices in _CHOICES.items():
            if values[name] not in choices:
                raise SettingsError(f"{name} is {values[name]!r}; choose from {', '.join(choices)}")
        for name, least in _AT_LEAST.items():
            if values[name] < least:
                raise SettingsError(f"{name} is {values[name]}; it must be at least {least}")
        if self.seed >= 2**32:
            raise SettingsError(f"seed is {self.seed}; it must be below 2**32")
        for name in _POSITIVE:
            if not (math.isfinite(values[name]) and values[name] > 0):
                raise SettingsError(f"{name} is {values[name]}; it must be positive")
        for name in ("other_prior", "other_likelihood"):
            if not 0 < values[name] < 1:
                raise SettingsError(f"{name} is {values[name]}; it must be between 0 and 1")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not (math.isfinite(self.caption_temperature) and self.caption_temperature >= 0):
            raise SettingsError(f"caption_temperature is {self.caption_temperature}; minimum 0")
        for name in ("yes", "no"):
            if not values[name] or not all(values[name]):
                raise SettingsError(f"{name} must list at least one token text, none of them empty")
        if shared := set(self.yes) & set(self.no):
            raise SettingsError(f"{min(shared)!r} is listed under both yes and no")
        if self.history != "none" and self.caption_tokens == 0:
            raise SettingsError(f"history {self.history!r} needs captions: caption_tokens is 0")
        if self.other and self.posterior == "nll" and self.likelihood != "ratio":
            raise SettingsError("other with posterior 'nll' needs likelihood 'ratio'")
        if self.min_frames > self.cap:
            raise SettingsError(
                f"min_frames is {self.min_frames}; it must not pass cap, {self.cap}"
            )
        if self.schedule == "fixed" and self.window >= self.steps:
            raise SettingsError(
                f"window is {self.window}; it must be below the {self.steps} steps of a video"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Reads what `to_dict` wrote, or any part of it: the door for files.

        Raises SettingsError, which names an unknown key or a value of a wrong type.
        """
        values = dict(values)
        prompts = values.pop("prompts", {})
        if not isinstance(prompts, Mapping):
            raise SettingsError(f"prompts is {prompts!r}; it must be a table of texts")
        values = _of_its_kind(cls, values, "")
        try:
            return cls(**values, prompts=Prompts(**_of_its_kind(Prompts, prompts, "prompts.")))
        except ValueError as error:
            raise SettingsError(str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON has it; tuples become lists, prompts a dictionary."""
        values = dataclasses.asdict(self)
        return values | {"yes": list(self.yes), "no": list(self.no)}


def _of_its_kind(record: type, values: Mapping[str, Any], scope: str) -> dict[str, Any]:
    """The values with each of the type of its field's default; SettingsError for what can't be."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(record)}
    read = {}
    for name, value in values.items():
        if name not in defaults:
            raise SettingsError(f"no such setting: {scope}{name}")
        kind = type(defaults[name])
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and type(value) is list:
            value = tuple(value)
        if type(value) is not kind or (kind is tuple and any(type(v) is not str for v in value)):
            raise SettingsError(f"{scope}{name} is {value!r}; it must be {_KINDS[kind]}")
        read[name] = value
    return read
