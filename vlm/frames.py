"""Host-side layout of visual patches: frames of whole attention windows, padded to one shape."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlm.config import VisionConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frames:
    """F temporal patches (a frame pair, or an image) laid out for the tower.

    A frame is a row of attention windows, each padded to `window_cells`^2 merged cells (one cell
    where the tower has no windows); a cell is merge^2 consecutive patches. Patches of one frame
    never attend to those of another, so frames are a batch, window attention is a reshape, and
    full attention is dense within the frame.
    """

    patches: Float[np.ndarray | Array, "F S features"]
    coordinates: Int[np.ndarray | Array, "F S 2"]
    """Row and column of each patch in its frame."""
    valid: Bool[np.ndarray | Array, "F S"]
    sizes: Int[np.ndarray | Array, "F 2"]
    """Height and width of each frame in patches."""


def window_order(height: int, width: int, side: int) -> Int[np.ndarray, " slots"]:
    """Cells (row-major numbers) of a height x width grid in window order; -1 where a window pads.

    Windows of side x side cells tile the grid from the top left; those at the right and lower
    borders are partial (`get_window_index` of Qwen2.5-VL, with every window kept at full size).
    """
    cells = np.full((-(-height // side) * side, -(-width // side) * side), -1, np.int32)
    cells[:height, :width] = np.arange(height * width).reshape(height, width)
    tiles = cells.reshape(cells.shape[0] // side, side, cells.shape[1] // side, side)
    return tiles.transpose(0, 2, 1, 3).reshape(-1)


def lay_out(
    patches: Float[np.ndarray, "P features"],
    grids: Int[np.ndarray, "items 3"],
    config: VisionConfig,
    *,
    windows: int | None = None,
    frames: int | None = None,
) -> tuple[Frames, Int[np.ndarray, " cells"]]:
    """Cuts the patches of several images or videos into padded frames.

    Args:
      patches: rows of all items, ordered (t, h/merge, w/merge, merge, merge) within an item.
      grids: (t, h, w) of each item in patches.
      config: supplies merge and window size.
      windows: windows a frame is padded to; at least what the largest frame needs (the default).
      frames: number of frames to pad to (default: as many as there are).

    Returns:
      The frames, and for every merged cell, in the order in which the prompt's placeholder tokens
      stand for them, its row in the tower's output flattened to [F * cells per frame].

    Raises:
      ValueError: grids that do not fit the patches, the merge or the padded shape.
    """
    grids = np.asarray(grids).tolist()
    named = sum(t * h * w for t, h, w in grids)
    if named != len(patches):
        raise ValueError(f"grids name {named} patches, {len(patches)} were given")
    if any(h % config.merge or w % config.merge for _, h, w in grids):
        raise ValueError(f"grids {grids} have sides that are no multiples of {config.merge}")
    side, unit = config.window_cells, config.merge**2
    per_window = side * side
    orders = [window_order(h // config.merge, w // config.merge, side) for _, h, w in grids]
    needed = max(len(order) for order in orders) // per_window
    windows = needed if windows is None else windows
    count = sum(t for t, _, _ in grids)
    frames = count if frames is None else frames
    if windows < needed or frames < count:
        raise ValueError(f"{count} frames of {needed} windows do not fit {frames} of {windows}")

    slots = windows * per_window
    out = np.zeros((frames, slots, unit, patches.shape[1]), patches.dtype)
    coordinates = np.zeros((frames, slots, unit, 2), np.int32)
    valid = np.zeros((frames, slots), bool)
    sizes = np.ones((frames, 2), np.int32)
    index, row, frame = [], 0, 0
    for (t, h, w), order in zip(grids, orders, strict=True):
        filled = np.flatnonzero(order >= 0)
        cells, size = order[filled], h * w
        place = cell_coordinates(h, w, config.merge)
        slot_of_cell = np.empty_like(cells)
        slot_of_cell[cells] = filled
        for _ in range(t):
            block = patches[row : row + size].reshape(-1, unit, patches.shape[1])
            out[frame, filled] = block[cells]
            coordinates[frame, filled] = place[cells]
            valid[frame, filled] = True
            sizes[frame] = h, w
            index.append(frame * slots + slot_of_cell)
            row, frame = row + size, frame + 1
    laid = Frames(
        patches=out.reshape(frames, slots * unit, -1),
        coordinates=coordinates.reshape(frames, slots * unit, 2),
        valid=np.repeat(valid, unit, axis=1),
        sizes=sizes,
    )
    return laid, np.concatenate(index).astype(np.int32)


def cell_coordinates(height: int, width: int, merge: int) -> Int[np.ndarray, "cells unit 2"]:
    """(row, column) of the merge^2 patches of every merged cell, cells row-major."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    grid = np.stack([rows, columns], axis=-1)
    grid = grid.reshape(height // merge, merge, width // merge, merge, 2)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, merge * merge, 2).astype(np.int32)
