import functools

import numpy as np
import pytest
from programs import o, value_and_grad

import objectives

VALUES = np.array([[1, 2, 0], [3, 4, 5], [7, 0, 0]], np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
# The same with rows and tokens of padding, which hold what nothing may touch.
PADDED = np.full((5, 6), np.nan, np.float32)
PADDED[:3, :3] = np.where(MASK, VALUES, np.inf)
WIDE = np.zeros((5, 6), bool)
WIDE[:3, :3] = MASK

REDUCTIONS = {
    "token_mean": (objectives.token_mean, "tokens", 3.666667),
    "mean_of_sequence_means": (objectives.mean_of_sequence_means, "sequences", 4.166667),
    "mean_of_sequence_sums": (objectives.mean_of_sequence_sums, "sequences", 7.333333),
    "constant_length": (
        functools.partial(objectives.constant_length, length=4), "sequences", 1.833333
    ),
}  # fmt: skip


@functools.cache
def programs(name, given):
    """The reduction's value and gradient; one program for all masks of a shape."""
    reduction, count, _ = REDUCTIONS[name]
    if given:
        return value_and_grad(lambda v, m, n: reduction(v, m, **{count: n}))
    return value_and_grad(reduction)


def test_per_sequence():
    np.testing.assert_allclose(o.sequence_sum(VALUES, MASK), [3, 12, 7])
    np.testing.assert_allclose(o.sequence_mean(VALUES, MASK), [1.5, 4, 7])
    np.testing.assert_allclose(o.sequence_mean(PADDED, WIDE), [1.5, 4, 7, 0, 0])
    assert o.sequence_sum(PADDED, WIDE).sum() == 22
    grid = np.tile(VALUES, (2, 4, 1, 1))
    assert o.sequence_mean(grid, np.tile(MASK, (2, 4, 1, 1))).shape == (2, 4, 3)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_reference_table_and_that_masking_equals_slicing(name):
    wanted = REDUCTIONS[name][2]
    value, gradient = programs(name, False)(PADDED, WIDE)
    assert float(value) == pytest.approx(wanted, abs=1e-6)
    weight = {
        "token_mean": np.full(3, 1 / 6),
        "mean_of_sequence_means": np.array([1 / 2, 1 / 3, 1]) / 3,
        "mean_of_sequence_sums": np.full(3, 1 / 3),
        "constant_length": np.full(3, 1 / 12),
    }[name]
    np.testing.assert_allclose(gradient[:3, :3], weight[:, None] * MASK, rtol=1e-6)
    assert not np.any(gradient[~WIDE])


@pytest.mark.parametrize("name", REDUCTIONS)
def test_micro_batches_add_up_with_the_denominator_of_the_batch(name):
    total = np.int32(6 if name == "token_mean" else 3)
    rows = np.arange(5)[:, None]
    parts = [programs(name, True)(PADDED, WIDE & here, total) for here in (rows < 1, rows >= 1)]
    value, gradient = programs(name, False)(PADDED, WIDE)
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(parts[0][1] + parts[1][1], gradient, rtol=1e-6)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_nothing_to_reduce_is_zero(name):
    value, gradient = programs(name, False)(PADDED, np.zeros_like(WIDE))
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_empty_rows_count_only_where_told_to():
    mask = WIDE & (np.arange(5)[:, None] != 2)
    value = functools.partial(programs("mean_of_sequence_means", True), PADDED, mask)
    assert float(programs("mean_of_sequence_means", False)(PADDED, mask)[0]) == 5.5 / 2
    assert float(value(np.int32(3))[0]) == pytest.approx(5.5 / 3)
