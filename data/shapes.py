"""A plain renderer of moving shapes: short clips with an event at a known time, for the demo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

SIZE, FPS, FRAMES = 224, 12, 60
EVENT_FRAME = 33
CLIPS = ("vanish", "recolor", "reverse", "jump", "calm")
"""What happens at frame 33 of each, to the larger of two shapes; in `calm`, nothing does."""

_RED, _BLUE, _GOLD = (214, 72, 56), (52, 104, 178), (232, 178, 60)


@dataclass(frozen=True)
class Event:
    """What happens, and when: the time in seconds of the first frame that shows it."""

    kind: str
    seconds: float


@dataclass(frozen=True)
class ShapeClip:
    """A rendered clip and what is true of it."""

    name: str
    frames: UInt8[np.ndarray, "frames height width 3"]
    fps: int
    events: tuple[Event, ...]


def render(name: str, seed: int = 0) -> ShapeClip:
    """Draws one of `CLIPS`: 60 frames of 224 x 224 at 12 per second; a function of its arguments.

    Raises ValueError for a name that is not in `CLIPS`.
    """
    if name not in CLIPS:
        raise ValueError(f"no clip {name!r}; choose from {', '.join(CLIPS)}")
    digest = hashlib.blake2b(f"{name} {seed}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    ground = _ground(rng)
    height, drift = rng.uniform(75, 105), rng.uniform(-0.3, 0.3)
    frames = []
    for t in range(FRAMES):
        after = t >= EVENT_FRAME and name != "calm"
        x, y, colour = 38 + 2.4 * t, height + drift * t + 6 * np.sin(t / 7), _RED
        if after and name == "reverse":
            x = 38 + 2.4 * (2 * (EVENT_FRAME - 1) - t)
        if after and name == "jump":
            y += 74
        if after and name == "recolor":
            colour = _GOLD
        frame = _paint(ground, _square(60 + 1.1 * t, 178 - 0.4 * t, 13.0), _BLUE)
        if not (after and name == "vanish"):
            frame = _paint(frame, _disc(x, y, 24.0), colour)
        noise = rng.normal(0, 1.5, frame.shape)
        frames.append(np.clip(frame + noise, 0, 255).round().astype(np.uint8))
    events = () if name == "calm" else (Event(name, EVENT_FRAME / FPS),)
    return ShapeClip(name, np.stack(frames), FPS, events)


def write_mp4(
    path: str | Path, frames: UInt8[np.ndarray, "frames height width 3"], fps: int
) -> None:
    """Encodes frames as H.264 in an mp4 file; both sides must be even. Raises OSError."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


_Coverage = Float[np.ndarray, "height width"]


def _ground(rng: np.random.Generator) -> Float[np.ndarray, "height width 3"]:
    """A quiet backdrop: warm grey, falling off downwards, mottled by smooth noise."""
    coarse = rng.normal(0, 1, (9, 9))
    at = np.linspace(0, 7.999, SIZE)
    low, part = at.astype(int), at - at.astype(int)
    part = part * part * (3 - 2 * part)
    rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    mottle = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    light = 206 - 36 * np.linspace(0, 1, SIZE)[:, None] + 7 * mottle
    return light[..., None] * np.array([1.0, 0.985, 0.95])


def _paint(
    frame: Float[np.ndarray, "height width 3"], shape: _Coverage, colour: tuple[int, int, int]
) -> Float[np.ndarray, "height width 3"]:
    """A shape and its soft shadow over a frame."""
    shadow = np.roll(shape, (5, 4), axis=(0, 1))
    for axis in (0, 1):
        shadow = sum(np.roll(shadow, step, axis) for step in range(-3, 4)) / 7
    frame = frame * (1 - 0.3 * shadow[..., None])
    return frame * (1 - shape[..., None]) + np.array(colour) * shape[..., None]


def _drawn(distance: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> _Coverage:
    """Coverage of every pixel from a signed distance in pixels: anti-aliased over one of them."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    return np.clip(0.5 - distance(x, y), 0, 1)


def _disc(cx: float, cy: float, radius: float) -> _Coverage:
    return _drawn(lambda x, y: np.hypot(x - cx, y - cy) - radius)


def _square(cx: float, cy: float, half: float) -> _Coverage:
    return _drawn(lambda x, y: np.maximum(abs(x - cx), abs(y - cy)) - half)
