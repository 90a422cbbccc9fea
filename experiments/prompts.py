"""The host side of prompts about a video: text and places of frames to padded tokens.

A prompt is laid out as `surprise.VideoModel` says. It grows by pieces, each behind the last, so
that what a device keeps of one serves all that follows: scoring, sampling and training alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surprise.trace import Context
from vlm.model import Tokens
from vlm.positions import mrope_positions
from vlm.processor import Processor, Visual, visual_fields

_END = "<|vision_end|>"


def bucket(size: int, least: int, *, parts: int = 4) -> int:
    """The smallest of least x 2^k x (1, 1 + 1/parts, ..., 2 - 1/parts) that holds `size`."""
    while least * (2 * parts - 1) // parts < size:
        least *= 2
    steps = (least * (parts + i) // parts for i in range(parts))
    return next(step for step in steps if step >= size)


@dataclass(frozen=True)
class Row:
    """One prompt so far: token ids, the visuals among them, and what stands for their cells.

    `features` has an array for each visual, with a row for each of its cells: the features, or
    where to find them.
    """

    ids: list[int]
    visuals: tuple[Visual, ...]
    features: tuple[np.ndarray, ...]

    def extended(self, ids: Sequence[int], visuals=(), features=()) -> Row:
        return Row([*self.ids, *ids], (*self.visuals, *visuals), (*self.features, *features))


EMPTY = Row([], (), ())


@dataclass(frozen=True)
class Clip:
    """A video's frame size in patches, true times, and what stands for each temporal patch."""

    grid: tuple[int, int]
    seconds: np.ndarray
    features: dict[tuple[int, ...], np.ndarray]


class Composer:
    """Makes the prompts of one model's processor."""

    def __init__(self, processor: Processor):
        self.processor, self.config = processor, processor.config

    def patches(self, view: tuple[int, ...]) -> list[tuple[int, ...]]:
        """A view's frames by temporal patch, the last frame repeated where one is missing."""
        span = self.config.vision.temporal_patch
        view = (*view, *[view[-1]] * (-len(view) % span))
        return [view[i : i + span] for i in range(0, len(view), span)]

    def window(self, context: Context, clip: Clip) -> Row:
        """The prompt up to the end of the window."""
        return self._shown(EMPTY, clip, self._piece(context, 0), context.window, "video")

    def observation(self, row: Row, context: Context, clip: Clip, places: tuple[int, ...]) -> Row:
        """The prompt with what is observed behind it: an image, or a video of a pair."""
        kind = "image" if len(places) == 1 else "video"
        return self._shown(row, clip, self._piece(context, 1, kind), places, kind)

    def question(self, context: Context, text: str) -> list[int]:
        """What follows the pictures: the question and the header of its answer."""
        return self.processor.tokenize(self._piece(context, -1, question=text))

    def request(self, system: str, text: str) -> Row:
        """A prompt of text alone."""
        messages = [_system(system)] * bool(system) + [{"role": "user", "content": text}]
        return EMPTY.extended(self.processor.tokenize(self.processor.render(messages)))

    def positions(self, row: Row) -> tuple[np.ndarray, int]:
        """Positions [3, T] of a prompt's tokens, and where an answer is decoded."""
        ids = np.array([row.ids], np.int32)
        fields = visual_fields(row.visuals)
        positions, following = mrope_positions(
            ids,
            np.ones(ids.shape, bool),
            fields.get("image_grid_thw"),
            fields.get("video_grid_thw"),
            fields.get("second_per_grid_ts"),
            fields.get("grid_seconds"),
            self.config,
            self.processor.settings.hf_compat,
        )
        return positions[:, 0], int(following[0])

    def text_start(self, row: Row) -> int:
        """The position of a text token behind the prompt, as in one pass over the whole."""
        return int(self.positions(row.extended(self.processor.plain(" ")))[0][0, len(row.ids)])

    def chunk(
        self, before: Sequence[Row], after: Sequence[Row], length: int | None = None
    ) -> tuple[Tokens, np.ndarray | None]:
        """The tokens that `after` adds to `before`, padded to `length` or a bucket, with N = 1.

        With them come the features that they show, [B, rows, features], or None; `visual` counts
        the rows of each prompt from 0 on.
        """
        longest = max(len(b.ids) - len(a.ids) for a, b in zip(before, after, strict=True))
        length = bucket(longest, least=16) if length is None else length
        if longest > length:
            raise ValueError(f"a chunk of {longest} tokens does not fit in {length}")
        shape = (len(after), 1, length)
        ids, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
        positions, visual = np.ones((3, *shape), np.int32), np.full(shape, -1, np.int32)
        placeholders = [self.config.image_token, self.config.video_token]
        for b, (old, new) in enumerate(zip(before, after, strict=True)):
            added = np.array(new.ids[len(old.ids) :], np.int32)
            count = len(added)
            ids[b, 0, :count], valid[b, 0, :count] = added, True
            positions[:, b, 0, :count] = self.positions(new)[0][:, len(old.ids) :]
            if len(new.features) > len(old.features):
                shown = np.flatnonzero(np.isin(added, placeholders))
                visual[b, 0, shown] = np.arange(len(shown))
        if (visual < 0).all():
            return Tokens(ids, positions, valid), None
        added = [
            np.concatenate(new.features[len(old.features) :])
            for old, new in zip(before, after, strict=True)
        ]
        rows = bucket(max(map(len, added)), least=16)
        features = np.zeros((len(after), rows, added[0].shape[1]), added[0].dtype)
        for b, part in enumerate(added):
            features[b, : len(part)] = part
        return Tokens(ids, positions, valid, visual), features

    def _shown(self, row: Row, clip: Clip, text: str, places: tuple[int, ...], kind: str) -> Row:
        """The prompt with a piece of text that shows `places` of its video."""
        visual = self.processor.placed(clip.grid, clip.seconds[list(places)], kind)
        features = np.concatenate([clip.features[patch] for patch in self.patches(places)])
        return row.extended(self.processor.tokenize(text, [visual]), [visual], [features])

    def _piece(
        self, context: Context, index: int, observation: str = "image", *, question: str = ""
    ) -> str:
        """Part of the prompt's text: 0 up to the window, 1 the observation, -1 what follows."""
        content = [{"type": "text", "text": context.history}] * bool(context.history)
        content += [{"type": "video"}, {"type": observation}, {"type": "text", "text": question}]
        messages = [_system(context.system)] * bool(context.system)
        messages.append({"role": "user", "content": content})
        pieces = self.processor.render(messages).split(_END)
        return pieces[index] if index == -1 else pieces[index] + _END


def text_rows(
    ids: Sequence[Sequence[Sequence[int]]], starts: Sequence[int], length: int | None = None
) -> Tokens:
    """B x N texts as rows padded to `length` or a bucket; row b counts positions from starts[b]."""
    longest = max(len(text) for row in ids for text in row)
    length = bucket(longest, least=16) if length is None else length
    if longest > length:
        raise ValueError(f"a text of {longest} tokens does not fit in {length}")
    shape = (len(ids), max(len(row) for row in ids), length)
    padded, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for b, row in enumerate(ids):
        for n, text in enumerate(row):
            padded[b, n, : len(text)], valid[b, n, : len(text)] = text, True
    positions = np.asarray(starts, np.int32)[:, None, None] + np.arange(length, dtype=np.int32)
    return Tokens(padded, np.broadcast_to(positions, (3, *shape)), valid)


def _system(text: str) -> dict:
    return {"role": "system", "content": text}
