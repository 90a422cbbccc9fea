"""Rewards: what was said, to numbers.

A reward is called as TRL calls one: `f(prompts, completions, **columns) -> list[float | None]`,
None where it does not apply. The columns are lists as long as the completions: `completion_ids`,
the fields of each view's Example (`answer` as it is to be said), `by` (word or letter), `frames`,
the numbers of those shown, and `place`, (b, m, g) on the grid; views that are only watched come
after the trained ones. Trajectories of the SPIKE pipeline have `hypotheses` as well, by step.
`log_metric(name, value)` adds a number to those whose mean is logged. All but `prompts` and
`completions` are by keyword.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from data.annotations import LETTERS
from data.transforms import NULL_OPTION
from experiments.arguments import UsageError
from objectives import (
    arrow_rl_reward,
    behaves,
    crr_terms,
    format_reward,
    grade_numeric,
    grade_yes_no,
    length_bonus,
    llm_match,
    overlong_penalty,
    parse_option,
    rouge_l,
    rouge_mean,
    t_grpo_bonus,
)
from surprise.hypotheses import same_form

Reward = Callable[..., Sequence[float | None]]
Place = tuple[int, int, int]


class RewardError(RuntimeError):
    """A reward that did not do its part; one line, which names it."""


@dataclass(frozen=True)
class Rewards:
    """Of the trained views: the weighted sum, each reward on its own, and what to log."""

    total: Float[np.ndarray, "B M G"]
    """NaN where no reward applies."""
    parts: dict[str, Float[np.ndarray, "B M G"]]
    every: dict[str, list[float | None]] = field(default_factory=dict)
    """Each reward of each completion, those of watched views included."""
    logged: dict[str, list[float]] = field(default_factory=dict)
    """Numbers that rewards have logged, by name."""

    @property
    def valid(self) -> Bool[np.ndarray, "B M G"]:
        return np.isfinite(self.total)

    @property
    def metrics(self) -> dict[str, float]:
        """Means of what was logged; mean and standard deviation of each reward."""
        metrics = {name: float(np.mean(numbers)) for name, numbers in self.logged.items()}
        for name, values in self.every.items():
            if any(value is not None for value in values):
                row = _numbers(values)
                metrics[f"rewards/{name}/mean"] = float(np.nanmean(row))
                metrics[f"rewards/{name}/std"] = float(np.nanstd(row))
        return metrics

    @classmethod
    def joined(cls, shares: Sequence[Rewards]) -> Rewards:
        """Shares of a batch, or several batches, behind one another."""

        def behind(name: str) -> dict[str, list]:
            every = [vars(share)[name] for share in shares]
            names = dict.fromkeys(key for one in every for key in one)
            return {key: [value for one in every for value in one.get(key, ())] for key in names}

        parts = {name: np.concatenate([one.parts[name] for one in shares])
                 for name in shares[0].parts}  # fmt: skip
        total = np.concatenate([share.total for share in shares])
        return cls(total, parts, behind("every"), behind("logged"))


@dataclass(frozen=True)
class Rewarder:
    """Several rewards and their weights."""

    functions: dict[str, Reward]
    weights: tuple[float, ...]

    def __call__(self, grid: Place, columns: dict[str, list]) -> Rewards:
        """Rewards of all completions; `grid` is (B, M, G) of the trained ones, which come first.

        Raises RewardError.
        """
        logged: dict[str, list[float]] = {}
        every = {
            name: _asked(name, function, columns, logged)
            for name, function in self.functions.items()
        }
        count = math.prod(grid)
        parts = {name: _numbers(row[:count]).reshape(grid) for name, row in every.items()}
        stacked = np.stack(list(parts.values()))
        weighted = stacked * np.reshape(self.weights, (-1, 1, 1, 1))
        total = np.where(np.isnan(stacked).all(0), np.nan, np.nansum(weighted, axis=0))
        return Rewards(total, parts, every, logged)


def _numbers(values: Sequence[float | None]) -> Float[np.ndarray, " count"]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def rewarder(config: dict[str, Any], judge: Callable[[list[str]], list[str]] | None) -> Rewarder:
    """The rewards that a configuration names: of this module, or `path/to/file.py:function`.

    Raises UsageError for a name that is not known, and for weights that are not one each.
    """
    functions: dict[str, Reward] = {}
    for name in config["rewards"]:
        function = BUILT_IN.get(name) or _own(name)
        options = config["reward_options"].get(name, {})
        if function is match:
            if judge is None:
                raise UsageError("--config.rewards=match needs a judge; set --config.judge.model")
            options = {**options, "judge": judge}
        functions[name.rpartition(":")[2]] = partial(function, **options) if options else function
    weights = tuple(float(weight) for weight in config["reward_weights"]) or (1.0,) * len(functions)
    if not functions or len(weights) != len(functions):
        raise UsageError(
            f"--config.reward_weights: {len(weights)} weights for {len(functions)} rewards"
        )
    return Rewarder(functions, weights)


def _own(name: str) -> Reward:
    """A user's own function."""
    path, _, function = name.rpartition(":")
    if not path.endswith(".py"):
        raise UsageError(
            f"--config.rewards: no reward {name!r}; choose from {', '.join(BUILT_IN)}, or write "
            "path/to/file.py:function"
        )
    if not Path(path).is_file():
        raise UsageError(f"--config.rewards: no file {path}")
    spec = importlib.util.spec_from_file_location(f"rewards_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own program
        raise UsageError(f"--config.rewards: {path}: {type(error).__name__}: {error}") from None
    if not callable(vars(module).get(function)):
        raise UsageError(f"--config.rewards: {path} has no function {function!r}")
    return vars(module)[function]


def _asked(
    name: str, function: Reward, columns: dict[str, list], told: dict[str, list[float]]
) -> list[float | None]:
    """What a reward says of each completion; RewardError if it is no number or None for each."""

    def log_metric(name: str, value: float) -> None:
        told.setdefault(name, []).append(float(value))

    try:
        values = list(function(**columns, log_metric=log_metric))
    except RewardError:
        raise
    except Exception as error:  # whatever a reward does, a run must end well
        raise RewardError(f"reward {name} failed: {type(error).__name__}: {error}") from error
    count = len(columns["completions"])
    if len(values) != count:
        raise RewardError(f"reward {name} gave {len(values)} values for {count} completions")
    for i, value in enumerate(values):
        if value is None:
            continue
        try:
            values[i] = float(value)
        except (TypeError, ValueError):
            raise RewardError(f"reward {name}, completion {i}: {value!r} is no number") from None
        if not math.isfinite(values[i]):
            raise RewardError(
                f"reward {name}, completion {i}: {value}; return None where it does not apply"
            )
    return values


# One completion at a time


def chosen(completion: str, options: Sequence[str], by: str) -> str | None:
    """The option that an answer names, as `answer` spells it; None if it names none.

    By word, the answer must be an option and nothing else, but for case, stops and spaces.
    """
    if by == "letter":
        return parse_option(completion, options)
    said = same_form(completion)
    return next((option for option in options if said and same_form(option) == said), None)


def accuracy(prompts, completions, *, answer, options, kind, by, **_) -> list[float | None]:
    """1 for the right answer, else 0; None for what has no single right answer (captions)."""
    rows = zip(completions, answer, options, kind, by, strict=True)
    return [_right(*row) for row in rows]


def _right(completion: str, answer: str, options: Sequence[str], kind: str, by: str):
    if options:
        return float(chosen(completion, options, by) == answer)
    if kind == "yes_no":
        return grade_yes_no(completion, answer.strip().lower() == "yes").score
    if kind == "number":
        return grade_numeric(completion, answer).score
    if kind in ("caption", "localisation"):
        return None
    return float(same_form(completion) == same_form(answer))


def option(prompts, completions, *, options, by, **_) -> list[float | None]:
    """1 for an answer that names one of the options; None where there are none."""
    rows = zip(completions, options, by, strict=True)
    return [float(chosen(text, own, how) is not None) if own else None for text, own, how in rows]


def tags(prompts, completions, **_) -> list[float]:
    """1 for <think>…</think><answer>…</answer> and no more, else 0 (Video-R1)."""
    return [format_reward(text) for text in completions]


def clauses(prompts, completions, *, caption, **_) -> list[float]:
    """Exact slots of the toy world: F1 of the clauses that a caption shares with the reference."""
    return [
        _shared(_clauses(text), _clauses(own))
        for text, own in zip(completions, caption, strict=True)
    ]


def _clauses(text: str) -> Counter[str]:
    parts = (same_form(part).removeprefix("then ") for part in re.split(r"[.,;]", text))
    return Counter(part for part in parts if part)


def _shared(ours: Counter[str], theirs: Counter[str]) -> float:
    return 2 * (ours & theirs).total() / max(ours.total() + theirs.total(), 1)


def rouge(prompts, completions, *, caption, **_) -> list[float]:
    """ROUGE-L F1 with the reference caption (SPIKE-RL, released code)."""
    return [rouge_l(text, own) for text, own in zip(completions, caption, strict=True)]


def match(prompts, completions, *, caption, answer, judge, log_metric, **_) -> list[float | None]:
    """LLM-Match: a judge's score of a completion against caption or answer; None if unreadable."""
    from objectives.rewards import judge_prompt

    references = [own or right for own, right in zip(caption, answer, strict=True)]
    asked = [judge_prompt(*pair) for pair in zip(completions, references, strict=True)]
    replies = dict(zip(asked, judge(asked), strict=True))
    grades = [llm_match(*pair, replies.get) for pair in zip(completions, references, strict=True)]
    log_metric("rewards/match/unparsed", np.mean([not grade.parsed for grade in grades]))
    return [grade.score if grade.parsed else None for grade in grades]


def length(
    prompts, completions, *, completion_ids, place, shortest=320, longest=512, bonus=0.2, **columns
) -> list[float | None]:
    """Video-R1's bonus for right answers of a wanted length."""
    right = accuracy(prompts, completions, **columns)
    found = _grid(right, place)
    tokens = _grid([len(ids) for ids in completion_ids], place)
    wanted = {"shortest": shortest, "longest": longest, "bonus": bonus}
    sizes = np.nan_to_num(tokens).astype(np.int32)
    return _listed(np.asarray(length_bonus(sizes, found > 0.1, **wanted)), place)


def overlong(prompts, completions, *, completion_ids, longest, cache, **_) -> list[float]:
    """DAPO's soft limit: 0 to -1 over the last `cache` of `longest` tokens."""
    lengths = np.array([len(ids) for ids in completion_ids], np.int32)
    return np.asarray(overlong_penalty(lengths, longest=longest, cache=cache)).tolist()


# Relations between views


def behaviour(
    prompts, completions, *, answer, options, by, route, place, log_metric, **_
) -> list[float]:
    """CRPO: right on the video; on the altered one changed, or for static questions right.

    View 0 is the video, view 1 the altered one. Logs the share of the null option in each; of
    dynamic questions p_acc, how often the answer to the one is right and to the other changed; of
    static ones agreement, how often the answer to the other is right.
    """
    right, behaved, dynamic, said = _branches(completions, answer, options, by, route, place)
    for group in np.flatnonzero(dynamic):
        log_metric("p_acc", right[group].mean() * behaved[group].mean())
    for group in np.flatnonzero(~dynamic):
        log_metric("agreement", behaved[group].mean())
    for view, name in enumerate(("original", "counterfactual")):
        null = [text == NULL_OPTION for text, at in zip(said, place, strict=True) if at[1] == view]
        log_metric(f"null_rate/{name}", np.mean(null))
    return _listed(np.stack([right, behaved], 1), place)


def relation(
    prompts, completions, *, answer, options, by, route, place, pairing="mean", gated=True, **_
) -> list[float]:
    """CRPO's R_CRR: credit for what the other branch did, gated on one's own."""
    right, behaved, _, _ = _branches(completions, answer, options, by, route, place)
    return _listed(np.stack(crr_terms(right, behaved, pairing=pairing, gated=gated), 1), place)


def _branches(completions, answer, options, by, route, place):
    """c [B, G], b [B, G], whether a question is dynamic [B], and the text of the option that each
    completion names, or None."""
    letters = [chosen(*row) for row in zip(completions, options, by, strict=True)]
    said = [
        own[LETTERS.index(letter)] if how == "letter" and letter else letter
        for letter, own, how in zip(letters, options, by, strict=True)
    ]
    right = _grid([named == own for named, own in zip(letters, answer, strict=True)], place) > 0
    valid = _grid([named is not None for named in letters], place) > 0
    routes = {at[0]: own for at, own in zip(place, route, strict=True)}
    dynamic = np.array([routes[b] != "static" for b in range(len(routes))])
    return right[:, 0], np.asarray(behaves(right[:, 1], valid[:, 1], dynamic)), dynamic, said


def temporal(prompts, completions, *, place, bonus=0.3, ratio=0.8, **columns) -> list[float | None]:
    """T-GRPO's bonus for right answers that the order of frames matters to; view 1 is shuffled."""
    right = _grid(accuracy(prompts, completions, place=place, **columns), place)
    shuffled = right[:, 1][:, ~np.isnan(right[:, 1]).all(0)]
    earned = t_grpo_bonus(right[:, 0], shuffled, bonus=bonus, ratio=ratio)
    return _listed(np.asarray(earned)[:, None], place)


def reversal(prompts, completions, *, answer, place, gamma=0.75, **_) -> list[float | None]:
    """ArrowRL: 1 - similarity to an answer about the reversed video (view 1), where time matters.

    Similarity is the mean of ROUGE-1, -2 and -L; 1 for equal texts of a single word too.
    """
    texts = dict(zip(place, completions, strict=True))
    values: dict[Place, float] = {}
    for (b, m, g), own in zip(place, answer, strict=True):
        if m == 0:
            turned = texts[b, 1, 0]
            similar = np.array([_similar(texts[b, m, g], turned)])
            target = np.array(_similar(turned, own))
            earned = arrow_rl_reward(np.zeros(1), similar, target, alpha=1.0, gamma=gamma)
            values[b, m, g] = float(earned[0])
    return [values.get(at) for at in place]


def _similar(ours: str, theirs: str) -> float:
    return 1.0 if same_form(ours) == same_form(theirs) else rouge_mean(ours, theirs)


def _grid(values: Sequence[float | None], place: Sequence[Place]) -> Float[np.ndarray, "B M G"]:
    """The values on their grid; NaN where there is none."""
    grid = np.full(np.max(place, axis=0) + 1, np.nan)
    for at, value in zip(place, values, strict=True):
        grid[at] = np.nan if value is None else value
    return grid


def _listed(grid: np.ndarray, place: Sequence[Place]) -> list[float | None]:
    """The grid's values by place; None for views that it does not have."""
    return [float(grid[at]) if at[1] < grid.shape[1] else None for at in place]


BUILT_IN: dict[str, Reward] = {
    function.__name__: function
    for function in (
        *(accuracy, option, tags, clauses, rouge, match, length, overlong),
        *(behaviour, relation, temporal, reversal),
    )
}
