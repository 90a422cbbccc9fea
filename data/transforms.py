"""Counterfactual clips: the same question of a mirrored or reversed video (CRPO).

Paper: arXiv 2605.21988 (project page). A text-only router labels each question (`router.py`); the
label says which transform must change the answer: spatial a flip, temporal a reversal. Transforms
act on the frames sampled, before patches exist: the vision towers merge frames in pairs, so a
reversal of patches would be another thing. The question is never touched, and a clip is never both
flipped and reversed: "from left to right" would be true again.
"""

from __future__ import annotations

import numpy as np

from data.router import asks_about_text, check_label
from data.types import Example, Transform

NULL_OPTION = "None of the above"
"""The option that lets an answer change even if the altered video's truth is not listed."""


def flip(example: Example) -> Example:
    """The clip mirrored left to right; of a flipped clip, the original.

    Raises ValueError without frames, and for a clip that is reversed already.
    """
    frames = _frames(example, "flip")
    mirrored = np.ascontiguousarray(frames[:, :, ::-1])
    return example.replace(frames=mirrored, transform=_toggled(example, "flip"))


def reverse(example: Example) -> Example:
    """The clip backwards, as a new clip whose times rise; of a reversed clip, the original.

    Times are mirrored within the clip: t becomes first + last - t, first and last being the times
    of its outer frames. `seconds`, `indices` (the file's frame of the clip's frame i is now
    first + last - indices[i]) and `events` are all given so, in rising order; `span`, `fps` and
    `frame_count` still speak of the file. Twice reversed, frames and indices are the same bits,
    times the same but for rounding (below 1e-9 s). Raises ValueError without frames, for events of
    a clip without times, and for a clip that is flipped already.
    """
    frames = _frames(example, "reversal")
    changes = {"frames": np.ascontiguousarray(frames[::-1])}
    for name in ("seconds", "indices"):
        times = vars(example)[name]
        changes[name] = None if times is None or not len(times) else _mirrored(times)
    if example.events:
        changes["events"] = _mirrored_events(example)
    return example.replace(**changes, transform=_toggled(example, "reversal"))


def transform_for(example: Example, seed: int) -> Transform:
    """The transform that the example's route asks for; a function of (seed, id), frames unseen.

    spatial: flip; temporal: reversal; either and static: one of the two at random. Where the
    question is about text and the route leaves a choice, reversal: mirrored text can't be read, so
    that even what should stay would change. Raises ValueError where `route` is no label.
    """
    label = check_label(example.route, f"example {example.id!r}: route")
    if label == "spatial":
        return "flip"
    if label == "temporal" or asks_about_text(example.question, example.options):
        return "reversal"
    heads = np.random.default_rng([seed, *example.id.encode("utf-8", "surrogatepass")]).integers(2)
    return "flip" if heads else "reversal"


def counterfactual(example: Example, seed: int) -> Example:
    """The clip as `transform_for` alters it. Raises ValueError for a clip altered before."""
    if example.transform is not None:
        raise ValueError(
            f"example {example.id!r} already has a {example.transform}; alter originals"
        )
    return flip(example) if transform_for(example, seed) == "flip" else reverse(example)


def branches(example: Example, seed: int, *, null_option: bool = True) -> tuple[Example, Example]:
    """The clip and its counterfactual, `pair` set to the example's id in both.

    Question, options and their order, answer and id are the same; `answer` is the original's. With
    `null_option` both offer `NULL_OPTION` where the question is multiple choice.
    """
    original = with_null_option(example) if null_option else example
    original = original.replace(pair=example.id)
    return original, counterfactual(original, seed)


def with_null_option(example: Example) -> Example:
    """The example with `NULL_OPTION` as the last option, once; other than multiple choice as it is.

    A list of options that has it already (in any case, with or without a stop) stays. Raises
    ValueError where the letters do not suffice.
    """
    if example.kind not in ("", "multiple_choice") or not example.options:
        return example
    if null_letter(example) is not None:
        return example
    if len(example.options) >= 26:
        raise ValueError(
            f"example {example.id!r} has {len(example.options)} options: no letter left"
        )
    return example.replace(options=(*example.options, NULL_OPTION))


def null_letter(example: Example) -> str | None:
    """The letter of the null option, None where it is not offered."""
    for place, option in enumerate(example.options):
        if option.strip().rstrip(".").casefold() == NULL_OPTION.casefold():
            return chr(ord("A") + place)
    return None


def _frames(example: Example, transform: Transform) -> np.ndarray:
    if example.frames is None:
        raise ValueError(f"example {example.id!r} has no frames yet; decode before a {transform}")
    return example.frames


def _toggled(example: Example, transform: Transform) -> Transform | None:
    """What the record says after a transform: applied once, or taken back."""
    if example.transform not in (None, transform):
        raise ValueError(
            f"example {example.id!r} already has a {example.transform}; with a {transform} too, "
            "the first answer may be true again: alter the original"
        )
    return None if example.transform else transform


def _mirrored(times: np.ndarray) -> np.ndarray:
    mirrored = times[0] + (times[-1] - times[::-1])
    mirrored[[0, -1]] = times[[0, -1]]  # despite rounding
    return mirrored


def _mirrored_events(example: Example) -> tuple[tuple[float, float], ...]:
    if example.seconds is None or not len(example.seconds):
        raise ValueError(f"example {example.id!r} has events but no seconds to mirror them by")
    first, last = float(example.seconds[0]), float(example.seconds[-1])
    turned = [(first + (last - end), first + (last - start)) for start, end in example.events]
    return tuple(reversed(turned))
