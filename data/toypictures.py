"""Pictures of the toy world's scenes, and what a video file makes of them."""

from __future__ import annotations

import functools
import statistics

import numpy as np
from jaxtyping import Float, UInt8

from data.toyscene import SHAPES, SIZE, Scene

RADIUS, PART_RADIUS, PART_OFFSET = 7.0, 4.0, 5
RGB = np.array(
    [(220, 40, 40), (50, 175, 70), (60, 95, 235), (235, 220, 60), (165, 70, 205), (245, 135, 30),
     (235, 240, 240)],
    np.float32,
)  # fmt: skip
_WALL = 60.0  # how much brighter the picture's outermost pixels are, the walls
_RIM, _UNLIT = np.full(3, 250, np.float32), np.full(3, 95, np.float32)
_PAD = 12  # half a patch: the largest radius, and a margin


def render(scene: Scene, rng: np.random.Generator) -> UInt8[np.ndarray, "K height width 3"]:
    """Draws a scene: uint8 [K, 64, 64, 3], with sensor noise of standard deviation 2."""
    ground = rng.uniform(40, 75) + rng.uniform(-6, 6, 3) + rng.normal(0, 2, (SIZE, SIZE, 1))
    ground[[0, -1]] += _WALL
    ground[1:-1, [0, -1]] += _WALL
    ground = ground.astype(np.float32)
    # Noise from a table of the normal distribution's quantiles: faster than drawing it.
    noise = rng.integers(0, 256, (scene.steps, SIZE, SIZE, 3), np.uint8)
    canvas = np.zeros((SIZE + 2 * _PAD, SIZE + 2 * _PAD, 3), np.float32)
    picture = canvas[_PAD:-_PAD, _PAD:-_PAD]
    frames = np.empty(noise.shape, np.uint8)
    for t in range(scene.steps):
        picture[:] = ground
        for j, place in enumerate(scene.lamps):
            light = RGB[scene.lights[j]] if scene.lit[j, t] else _UNLIT
            _stamp(canvas, place, _mask("disc", 6.0), light)
        if scene.spark is not None:
            _stamp(canvas, scene.spark[t], _mask("diamond", 7.0), RGB[scene.lights[-1]])
        for i in range(scene.objects):
            _draw(canvas, scene, i, t)
        sensed = picture * np.float32(scene.gain[t]) + _noise().take(noise[t], mode="wrap")
        frames[t] = sensed.clip(0, 255)
    return frames


def as_filmed(
    frames: UInt8[np.ndarray, "K height width 3"],
) -> UInt8[np.ndarray, "K height width 3"]:
    """The frames as a usual video file keeps them: colour at half the resolution (4:2:0)."""
    luma_and_colour = frames.astype(np.float32) @ _YCBCR.T
    colour = luma_and_colour[..., 1:]
    k, height, width, _ = colour.shape
    coarse = colour.reshape(k, height // 2, 2, width // 2, 2, 2).mean((2, 4))
    luma_and_colour[..., 1:] = coarse.repeat(2, axis=1).repeat(2, axis=2)
    return (luma_and_colour @ _RGB_OF_YCBCR.T + 0.5).clip(0, 255).astype(np.uint8)


# BT.601, as encoders take it for small pictures.
_YCBCR = np.array(
    [(0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)], np.float32
)
_RGB_OF_YCBCR = np.linalg.inv(_YCBCR)


def _draw(canvas: Float[np.ndarray, "high wide 3"], scene: Scene, i: int, t: int) -> None:
    count, name = scene.count[i, t], SHAPES[scene.shape[i, t]]
    radius = PART_RADIUS if count == 2 else float(scene.radius[i, t])
    offset = PART_OFFSET * (np.arange(2) == scene.spread[i])
    for place in {0: (), 1: (0,), 2: (-1, 1)}[int(count)]:
        at = scene.centre[i, t] + place * offset
        if scene.flashing[i]:
            _stamp(canvas, at, _mask(name, radius), _RIM)
        inset = 0.15 * radius if scene.flashing[i] else 0.0
        _stamp(canvas, at, _mask(name, radius, inset), RGB[scene.colour[i, t]])


def _stamp(canvas, place, mask, colour) -> None:
    half = len(mask) // 2  # the canvas is wider than the picture by _PAD all round
    x, y = int(place[0]) + _PAD - half, int(place[1]) + _PAD - half
    patch = canvas[y : y + 2 * half, x : x + 2 * half]
    patch += mask * (colour - patch)


@functools.cache
def _noise() -> Float[np.ndarray, " 256"]:
    normal = statistics.NormalDist(mu=0.5, sigma=2)  # the half rounds to the nearest
    return np.array([normal.inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)


@functools.cache
def _mask(name: str, radius: float, inset: float = 0.0) -> Float[np.ndarray, "patch patch 1"]:
    """Coverage of each pixel of a patch by a shape in its middle, anti-aliased over one pixel."""
    half = int(radius) + 2
    at = np.arange(-half, half) + 0.5
    x, y, r = abs(at)[None, :], at[:, None], radius
    if name == "ring":
        distance = abs(np.hypot(x, y) - 0.65 * r) - 0.35 * r
    elif name == "square":
        distance = np.maximum(x, abs(y)) - 0.88 * r
    elif name == "triangle":
        distance = np.maximum((1.75 * x - 0.95 * (y + r)) / np.hypot(1.75, 0.95), y - 0.75 * r)
    elif name == "cross":
        bars = np.maximum(x - r, abs(y) - 0.36 * r), np.maximum(x - 0.36 * r, abs(y) - r)
        distance = np.minimum(*bars)
    elif name == "disc":
        distance = np.hypot(x, y) - r
    else:
        distance = (x + abs(y) - r) / np.sqrt(2)  # diamond
    return np.clip(0.5 - inset - distance, 0, 1).astype(np.float32)[..., None]
