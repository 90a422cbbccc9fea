"""Rotary position embedding: angles in float32, rotation by halves."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def frequencies(width: int, theta: float) -> Float[np.ndarray, " half"]:
    """Inverse frequencies theta^(-2i/width) of a rotary embedding over `width` channels."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return (np.float32(1.0) / np.float32(theta) ** exponents).astype(np.float32)


def section_axes(sections: tuple[int, ...]) -> Int[np.ndarray, " half"]:
    """Which position axis (0 time, 1 height, 2 width) turns each frequency, in chunked sections.

    Qwen2.5-VL: the first 16 frequencies follow time, the next 24 height, the last 24 width.
    """
    return np.repeat(np.arange(len(sections)), sections)


def interleaved_axes(sections: tuple[int, ...]) -> Int[np.ndarray, " half"]:
    """As `section_axes` for interleaved sections (Qwen3-VL): height turns every third frequency
    from 1 on and width from 2 on, as many as its section counts; time turns the rest."""
    axes = np.zeros(sum(sections), np.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def multimodal_angles(
    positions: Int[Array, "3 *rows"], axes: Int[np.ndarray, " half"], theta: float
) -> Float[Array, "*rows half"]:
    """Angles of multimodal rotary embedding (M-RoPE): frequency i turns with axis `axes[i]`."""
    turned = jnp.moveaxis(positions[axes], 0, -1).astype(jnp.float32)
    inverse = frequencies(2 * len(axes), theta)
    return turned * inverse.reshape((1,) * (turned.ndim - 1) + (-1,))


def vision_angles(
    coordinates: Int[Array, "*rows 2"], head_dim: int, theta: float
) -> Float[Array, "*rows half"]:
    """Angles of the towers' 2-D rotary embedding: a quarter of the head by height, one by width."""
    inverse = frequencies(head_dim // 2, theta)
    angles = coordinates.astype(jnp.float32)[..., None]
    angles = angles * inverse.reshape((1,) * (angles.ndim - 1) + (-1,))
    return angles.reshape(*coordinates.shape[:-1], head_dim // 2)


def rotate(
    x: Float[Array, "*rows heads head_dim"], angles: Float[Array, "*rows half"]
) -> Float[Array, "*rows heads head_dim"]:
    """Turns channel pairs (i, i + head_dim/2) of every head by `angles`; in float32, cast back."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
