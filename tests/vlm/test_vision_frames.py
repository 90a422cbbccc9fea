"""The layout of patches into padded windows and frames, and a tower that cannot tell the padding.

Grids and orders are worked by hand; features are compared between batches of other compositions.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from vlm.frames import Frames, cell_coordinates, lay_out, window_order
from vlm.vision_qwen25 import Qwen25Tower

CONFIG = small.CONFIG.vision  # windows of 2 x 2 merged cells, a cell of 2 x 2 patches
X = -1


def numbered(grids, config=CONFIG):
    """Patches whose every value is their row number."""
    rows = sum(t * h * w for t, h, w in grids)
    return np.repeat(np.arange(rows, dtype=np.float32)[:, None], config.patch_features, axis=1)


@pytest.mark.parametrize(
    ("height", "width", "side", "order"),
    [
        (1, 1, 1, [0]),
        (1, 1, 2, [0, X, X, X]),
        (2, 2, 2, [0, 1, 2, 3]),
        (2, 4, 2, [0, 1, 4, 5, 2, 3, 6, 7]),
        # Partial windows at the right, below, and in the corner.
        (3, 3, 2, [0, 1, 3, 4, 2, X, 5, X, 6, 7, X, X, 8, X, X, X]),
        (1, 5, 3, [0, 1, 2, X, X, X, X, X, X, 3, 4, X, X, X, X, X, X, X]),
    ],
)
def test_window_order_worked_by_hand(height, width, side, order):
    np.testing.assert_array_equal(window_order(height, width, side), order)


def test_coordinates_of_the_patches_of_each_cell():
    np.testing.assert_array_equal(
        cell_coordinates(2, 4, 2),
        [[[0, 0], [0, 1], [1, 0], [1, 1]], [[0, 2], [0, 3], [1, 2], [1, 3]]],
    )
    np.testing.assert_array_equal(cell_coordinates(1, 2, 1), [[[0, 0]], [[0, 1]]])


def test_a_layout_worked_by_hand():
    """A video of 2 frames of 1 x 3 cells (windows of 2 and 1 cells), then an image of one cell."""
    grids = np.array([[2, 2, 6], [1, 2, 2]])
    frames, index = lay_out(numbered(grids.tolist()), grids, CONFIG)
    assert frames.patches.shape == (3, 2 * 4 * 4, 8)  # 3 frames of 2 windows of 4 cells of 4
    cells = np.where(frames.valid, frames.patches[..., 0], X).reshape(3, 2, 4, 4)[..., 0]
    np.testing.assert_array_equal(
        cells,  # first patch of each cell
        [
            [[0, 4, X, X], [8, X, X, X]],
            [[12, 16, X, X], [20, X, X, X]],
            [[24, X, X, X], [X, X, X, X]],
        ],
    )
    np.testing.assert_array_equal(index, [0, 1, 4, 8, 9, 12, 16])
    np.testing.assert_array_equal(frames.coordinates[1, 16:20], [[0, 4], [0, 5], [1, 4], [1, 5]])


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize(
    "grids", [[[1, 2, 2]], [[3, 6, 10]], [[2, 4, 6], [1, 10, 2], [1, 8, 8], [4, 2, 4]]]
)
def test_indices_invert_the_layout(grids, extra):
    patches = numbered(grids)
    needed = max(-(-h // 4) * -(-w // 4) for _, h, w in grids)
    count = sum(t for t, _, _ in grids)
    frames, index = lay_out(
        patches, np.array(grids), CONFIG, windows=needed + extra, frames=count + extra
    )
    assert frames.patches.shape == (count + extra, (needed + extra) * 16, 8)
    assert frames.valid.sum() == len(patches)
    cells = frames.patches.reshape(-1, 4, 8)
    np.testing.assert_array_equal(cells[index].reshape(-1, 8), patches)
    assert frames.valid.reshape(-1, 4)[index].all()
    places = frames.coordinates.reshape(-1, 4, 2)[index].reshape(-1, 2)
    expected = [np.tile(cell_coordinates(h, w, 2).reshape(-1, 2), (t, 1)) for t, h, w in grids]
    np.testing.assert_array_equal(places, np.concatenate(expected))


@pytest.mark.parametrize(
    ("grids", "rows", "options", "says"),
    [
        ([[1, 4, 4]], 12, {}, "grids name 16 patches, 12 were given"),
        ([[1, 4, 4]], 20, {}, "grids name 16 patches, 20 were given"),
        ([[1, 3, 4]], 12, {}, "no multiples of 2"),
        ([[1, 6, 4]], 24, {"windows": 1}, "1 frames of 2 windows do not fit 1 of 1"),
        ([[3, 2, 2]], 12, {"frames": 2}, "3 frames of 1 windows do not fit 2 of 1"),
    ],
)
def test_grids_that_do_not_fit(grids, rows, options, says):
    patches = np.zeros((rows, CONFIG.patch_features), np.float32)
    with pytest.raises(ValueError, match=says):
        lay_out(patches, np.array(grids), CONFIG, **options)


# The tower


@pytest.fixture(scope="module")
def graph_and_state():
    return small.drawn(lambda: Qwen25Tower(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def apply(graph_and_state):
    """The jitted tower as a function of the frames."""
    return small.jit(nnx.merge(*graph_and_state).__call__)


def encoded(apply, patches, grids, *, windows=6, frames=6):
    """Features of every merged cell, in the prompt's order; one padded shape, so one compile."""
    laid, index = lay_out(patches, np.array(grids), CONFIG, windows=windows, frames=frames)
    out = np.asarray(apply(jax.tree.map(jnp.asarray, laid)))
    return out.reshape(-1, out.shape[-1])[index]


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).normal(size=(3 * 6 * 10, 8)).astype(np.float32), [3, 6, 10]


def test_temporal_patches_together_equal_each_alone(apply, video):
    patches, (t, h, w) = video
    together = encoded(apply, patches, [[t, h, w]])
    alone = [encoded(apply, part, [[1, h, w]]) for part in np.split(patches, t)]
    assert together.std() > 0.1
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    # Frames are not interchangeable: the equality above is not one of constants.
    assert np.abs(alone[0] - alone[1]).max() > 0.1


def test_another_batch_changes_nothing(apply, video):
    patches, grid = video
    others = np.random.default_rng(1).normal(size=(2 * 4 * 4 + 8 * 2, 8)).astype(np.float32)
    before, after = others[:32], others[32:]
    mixed = encoded(apply, np.concatenate([before, patches, after]), [[2, 4, 4], grid, [1, 8, 2]])
    np.testing.assert_allclose(mixed[8:-4], encoded(apply, patches, [grid]), atol=1e-5)
    np.testing.assert_allclose(mixed[-4:], encoded(apply, after, [[1, 8, 2]]), atol=1e-5)


def test_padding_changes_nothing_whatever_it_holds(apply, video):
    patches, grid = video
    padded = encoded(apply, patches, [grid])
    tight = encoded(apply, patches, [grid], windows=None, frames=None)
    np.testing.assert_allclose(padded, tight, atol=1e-5)
    laid, index = lay_out(patches, np.array([grid]), CONFIG, windows=6, frames=6)
    junk = np.random.default_rng(2).normal(size=laid.patches.shape).astype(np.float32)
    dirty = dataclasses.replace(
        laid, patches=np.where(laid.valid[..., None], laid.patches, 100 * junk)
    )
    out = np.asarray(apply(jax.tree.map(jnp.asarray, dirty)))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out.reshape(-1, CONFIG.out)[index], padded, atol=1e-5)


def test_windows_bound_what_a_patch_sees_and_full_layers_do_not(apply, graph_and_state):
    """Cells of a 2 x 4 grid: columns 0 and 1 are the left window, 2 and 3 the right one."""
    patches = np.random.default_rng(3).normal(size=(4 * 8, 8)).astype(np.float32)
    changed = patches.copy()
    changed[-1] += 1  # the last patch, in the right window

    def difference(apply):
        a, b = (encoded(apply, rows, [[1, 4, 8]]) for rows in (patches, changed))
        return np.abs(a - b).max(-1)

    assert (difference(apply) > 1e-4).all()
    one = dataclasses.replace(CONFIG, depth=1, full_layers=())
    graph, _ = small.drawn(lambda: Qwen25Tower(one, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    state = graph_and_state[1]
    first = nnx.State({**state, "blocks": jax.tree.map(lambda x: x[:1], state["blocks"])})
    windowed = difference(small.jit(nnx.merge(graph, first).__call__))
    left = np.array([0, 1, 4, 5])
    assert (windowed[left] == 0).all()
    assert (np.delete(windowed, left) > 1e-4).all()


@pytest.mark.parametrize("remat", [False, True])
def test_remat_reaches_the_blocks(graph_and_state, remat):
    """That it changes no number is proved on the decoder: both fold through `layers.scan`."""
    graph, state = graph_and_state
    laid, _ = lay_out(numbered([[1, 4, 4]]), np.array([[1, 4, 4]]), CONFIG)
    laid = jax.tree.map(jnp.asarray, laid)
    equations = str(jax.make_jaxpr(lambda s: nnx.merge(graph, s)(laid, remat=remat))(state))
    assert remat == ("checkpoint" in equations or "remat" in equations)


def test_frames_are_a_pytree_of_arrays():
    laid, _ = lay_out(numbered([[1, 2, 2]]), np.array([[1, 2, 2]]), CONFIG)
    assert len(jax.tree.leaves(laid)) == 4
    assert isinstance(jax.tree.map(jnp.asarray, laid), Frames)
