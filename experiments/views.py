"""Data expansion: an example becomes M views, each of which is asked G times.

A view is an example of its own: other frames of the video, an altered video, or other words. Those
that are `trained` enter the update; what is said to those that are `watched` only informs rewards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from data import variants
from data.annotations import LETTERS
from data.transforms import branches, reverse
from data.types import Example
from data.variants import Scores, uniform_places
from surprise.baselines import SCORES


@dataclass(frozen=True)
class Views:
    """The views of one example, in the order of the grid."""

    trained: tuple[Example, ...]
    watched: tuple[Example, ...] = ()

    @property
    def all(self) -> tuple[Example, ...]:
        return self.trained + self.watched


def plain(example: Example, config: dict[str, Any]) -> Views:
    """The example, by `frames` evenly spaced frames (0: all)."""
    return Views((evenly(example, config["frames"]),))


def counterfactual(example: Example, config: dict[str, Any]) -> Views:
    """The video, and it flipped or reversed, as the question's route has it (CRPO)."""
    pair = branches(
        evenly(example, config["frames"]), config["seed"], null_option=config["null_option"]
    )
    return Views(pair)


def importance(example: Example, config: dict[str, Any]) -> Views:
    """`num_views` draws of `frames` frames that matter, the first evenly spaced (STRIVE)."""
    values = SCORES[config["scorer"]](example.frames)
    pool = tuple(numbers(example).tolist())
    scores = Scores(pool, tuple(values.tolist()))
    how = variants.Sampling(
        budget=config["frames"] or len(pool),
        views=config["num_views"],
        method=config["coverage"],
        temperature=config["frame_temperature"],
    )
    return Views(tuple(variants.views(example, scores, how, seed=config["seed"])))


def shuffled(example: Example, config: dict[str, Any]) -> Views:
    """The example, and beside it its frames in random order (T-GRPO)."""
    example = evenly(example, config["frames"])
    order = _generator(example, config).permutation(len(example.frames))
    return Views((example,), (replace(example, frames=example.frames[order], variant=1),))


def backwards(example: Example, config: dict[str, Any]) -> Views:
    """The example, and beside it the reversed video (ArrowRL)."""
    example = evenly(example, config["frames"])
    return Views((example,), (reverse(example),))


def reworded(example: Example, config: dict[str, Any]) -> Views:
    """`num_views` wordings of the question, the options in another order each (Share-GRPO)."""
    example, rng = evenly(example, config["frames"]), _generator(example, config)
    views = [example]
    while len(views) < config["num_views"]:
        order = rng.permutation(len(example.options))
        letter = LETTERS[order.tolist().index(LETTERS.index(example.answer))]
        options = tuple(example.options[i] for i in order)
        views.append(replace(example, options=options, answer=letter))
    return Views(tuple(views))


EXPANSIONS: dict[str, Callable[[Example, dict[str, Any]], Views]] = {
    "plain": plain,
    "counterfactual": counterfactual,
    "importance": importance,
    "shuffled": shuffled,
    "backwards": backwards,
    "reworded": reworded,
}


def evenly(example: Example, count: int) -> Example:
    """The example with `count` evenly spaced frames, or all where that is 0 or more than it has."""
    there = len(example.frames)
    places = uniform_places(there, min(count or there, there))
    return replace(
        example,
        frames=example.frames[places],
        seconds=example.seconds[places],
        indices=None if example.indices is None else example.indices[places],
    )


def numbers(example: Example) -> Int[np.ndarray, " F"]:
    """Of its frames, in the file."""
    return np.arange(len(example.frames)) if example.indices is None else example.indices


def _generator(example: Example, config: dict[str, Any]) -> np.random.Generator:
    """Chance that depends on the seed and the example alone."""
    return np.random.default_rng([config["seed"], *example.id.encode("utf-8", "surrogatepass")])
