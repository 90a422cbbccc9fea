"""Example: one item of a dataset, from a line of a file to decoded frames."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

Transform = Literal["flip", "reversal"]
"""What a counterfactual video differs in: left and right, or the order of time."""


@dataclass(frozen=True)
class Example:
    """A video, or a span of it, and what is asked or known about it.

    Readers set the fields down to `extra`; the pipeline sets the clip's; transforms replace
    fields and say so in `transform` and `variant`.
    """

    id: str
    """Unique within its dataset."""
    video: str
    """Path of the file."""
    span: tuple[float, float] | None = None
    """Seconds of the file that count, start and end; None is the whole of it."""
    question: str = ""
    options: tuple[str, ...] = ()
    """Texts of the options, without letters; empty for an open question."""
    answer: str = ""
    """The letter of the right option where there are options, else the answer's text."""
    task: str = ""
    """Task or category, in the dataset's own words."""
    kind: str = ""
    """What the question asks for: multiple_choice, yes_no, number, text, caption, localisation."""
    route: str = ""
    """The router's label: spatial, temporal, either (spatiotemporal), static; "" where unasked."""
    caption: str = ""
    """Reference caption."""
    events: tuple[tuple[float, float], ...] = ()
    """Annotated events, start and end in seconds of the file; a moment has both equal."""
    pair: str = ""
    """Id shared by the two sides of a counterfactual pair."""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Other columns of the file, as they are."""

    transform: Transform | None = None
    """The counterfactual transform that was applied to the frames."""
    variant: int = 0
    """Number of the view of the video, from 0 (STRIVE)."""

    fps: float = 0.0
    """Average frame rate of the file, 1/s."""
    frame_count: int = 0
    """Frames in the file."""
    indices: Int[np.ndarray, " F"] | None = None
    """Numbers, in the file, of the frames taken, rising."""
    seconds: Float[np.ndarray, " F"] | None = None
    """Time of each frame, float64, rising, also after a reversal."""
    frames: UInt8[np.ndarray, "F height width 3"] | None = None
    """RGB, uint8, until it reaches the device."""

    def replace(self, **changes: Any) -> Example:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
