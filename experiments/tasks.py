"""What a policy is asked in training: batch after batch of examples with frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.toyquestions import TASKS, questions
from data.toytasks import CAPTION_REQUEST
from data.toyworld import LEVELS, make
from data.types import Example
from experiments.arguments import UsageError

_FRESH = 10_000_000  # clips from here on are none that supervised training has seen


def check(config: dict[str, Any]) -> None:
    """Raises UsageError for what `toy` can't serve."""
    wanted = config["toy"]
    if wanted["level"] not in LEVELS:
        raise UsageError(
            f"--config.toy.level is {wanted['level']!r}; choose from {', '.join(LEVELS)}"
        )
    if unknown := sorted(set(wanted["tasks"]) - {*TASKS, "caption"}):
        raise UsageError(
            f"--config.toy.tasks: no task {unknown[0]!r}; choose from caption, {', '.join(TASKS)}"
        )


def toy(number: int, config: dict[str, Any], *, split: str = "train") -> list[Example]:
    """Batch `number` of a split of the toy world: `batch` clips, one question about each.

    A function of its arguments alone. `config["toy"]`: level of the clips; tasks, the kinds of
    questions, all where none is named, or "caption"; routed, only questions whose route is known.
    """
    rng = np.random.default_rng([config["seed"], 3, number])
    wanted = config["toy"]
    tasks = wanted["tasks"] or TASKS
    examples: list[Example] = []
    index = _FRESH + 1000 * number
    while len(examples) < config["batch"]:
        clip = make(index, seed=config["seed"], split=split, level=wanted["level"])
        index += 1
        able = questions(clip, seed=config["seed"])
        if "caption" in tasks:
            able = [_captioned(able[0])] if able else []
        able = [one for one in able if one.task in tasks and (one.route or not wanted["routed"])]
        if able:  # every task that the clip allows is as likely as any other
            task = str(rng.choice(sorted({one.task for one in able})))
            same = [one for one in able if one.task == task]
            examples.append(same[rng.integers(len(same))])
    return examples


def _captioned(example: Example) -> Example:
    """The request to caption the clip of a question."""
    return example.replace(
        id=f"{example.id}-caption",
        question=CAPTION_REQUEST,
        options=(),
        answer=example.caption,
        task="caption",
        kind="caption",
        route="",
    )
