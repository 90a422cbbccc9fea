"""A viewer for examinations: each of its videos is asked a question of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.viewer import State, Viewer, greedy
from surprise.hypotheses import clean
from vlm.patches import resize


class Examiner(Viewer):
    """See `Viewer`."""

    def show(
        self,
        video: str,
        frames: np.ndarray,
        seconds: np.ndarray,
        views: Sequence[tuple[int, ...]],
        *,
        shown: int,
    ) -> None:
        """`add` for frames of any size, uint8 [K, height, width, 3], so many to a prompt."""
        size = self.frame_size(*frames.shape[1:3], frames=shown)
        if size != frames.shape[1:3]:
            frames = np.stack([resize(frame, size) for frame in frames])
        self.add(video, frames, seconds, views)

    def answer(self, state: State, questions: Sequence[str], *, max_tokens: int) -> list[str]:
        """The greedy answer to each context's own question, on one line."""
        answers = self.generate(state, questions, greedy(len(questions), max_tokens))
        return [clean(row[0].text) for row in answers]
