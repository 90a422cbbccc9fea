"""Metrics of localisation, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from surprise.localisation import (
    auroc,
    bootstrap,
    bootstrap_of,
    diversity,
    hit,
    iou,
    paired,
    released_coverage,
    released_hit,
    released_iou,
    released_truth,
    spearman,
    step_auroc,
    word_vectors,
)

SECONDS = np.arange(9) * 0.5  # 0, 0.5 .. 4
SCORES = np.array([0, 1.0, 2, 9, 10, 3, 8.5, 1, 0])  # best at 2.0 s; above 8: steps 3, 4 and 6


def test_hit_is_by_the_middle_of_the_nearest_event():
    assert hit(SCORES, SECONDS, [(2.25, 2.25)], delta=0.25)
    assert not hit(SCORES, SECONDS, [(2.3, 2.3)], delta=0.25)
    assert hit(SCORES, SECONDS, [(1.0, 3.5)], delta=0.25)  # the middle is 2.25
    assert not hit(SCORES, SECONDS, [(0.0, 2.0)], delta=0.25)  # although 2.0 is in it
    assert hit(SCORES, SECONDS, [(0.0, 0.0), (2.2, 2.2)], delta=0.25)
    assert hit(np.array([0, 5.0, 5.0]), np.array([0, 0.1, 0.2]) * 3, [(0.2, 0.2)], delta=0.1)
    ties = np.array([0.0, 7, 7])
    assert not hit(ties, np.array([0.0, 1, 2]), [(2.0, 2.0)], delta=0.5)  # the first one counts


def test_iou_by_hand():
    # Runs above 0.8 * 10: steps 3, 4 are (1.0, 2.0], step 6 is (2.5, 3.0]: 1.5 s in all.
    assert iou(SCORES, SECONDS, [(1.5, 2.75)]) == pytest.approx(0.75 / (1.5 + 1.25 - 0.75))
    assert iou(SCORES, SECONDS, [(1.0, 2.0), (2.5, 3.0)]) == pytest.approx(1)
    assert iou(SCORES, SECONDS, [(3.5, 4.0)]) == 0
    assert iou(SCORES, SECONDS, [(1.0, 1.75), (1.25, 2.0)]) == pytest.approx(1 / 1.5)
    assert iou(SCORES, SECONDS, [(1.0, 2.0)], share=0.95) == pytest.approx(0.5)
    assert math.isnan(iou(SCORES, SECONDS, [(2.0, 2.0)]))


def test_the_released_rules_are_laxer():
    window = released_truth(SECONDS, [(1.5, 2.5)], length=4.0)
    assert np.nonzero(window)[0].tolist() == [3, 4, 5]
    oops = released_truth(SECONDS, [(2.5, 2.5)], length=4.5, oops=True)
    assert np.nonzero(oops)[0].tolist() == [4, 5, 6, 7]  # from 2.0 to 3.6
    between = released_truth(SECONDS, [(1.7, 1.7)], length=4.0)
    assert np.nonzero(between)[0].tolist() == [3]  # the nearest: none is at 1.7

    assert released_hit(SCORES, SECONDS, oops, delta=0.25)
    assert not hit(SCORES, SECONDS, [(2.5, 2.5)], delta=0.25)
    assert not released_hit(SCORES, SECONDS, between, delta=0.25)
    assert released_hit(SCORES, SECONDS, between, delta=0.5)
    assert released_iou(SCORES, SECONDS, oops) == 1
    assert released_iou(SCORES, SECONDS, between) == pytest.approx(0.5 / 1.5)
    far = np.arange(9) == 8
    assert released_iou(SCORES, SECONDS, far) == 0
    assert released_coverage(SCORES, np.arange(9) >= 6) == pytest.approx(2 / 3)


def test_auroc_counts_pairs():
    scores, truth = np.array([1.0, 3, 2, 2]), np.array([False, True, True, False])
    assert auroc(scores, truth) == pytest.approx((2 + 1.5) / 4)  # 3 beats 1, 2; 2 beats 1, ties 2
    assert auroc(-scores, truth) == pytest.approx(0.5 / 4)
    assert auroc(np.zeros(6), np.arange(6) > 3) == 0.5
    assert math.isnan(auroc(scores, np.ones(4, bool)))
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 9, 60), rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[truth] for b in scores[~truth]]
    assert auroc(scores, truth) == pytest.approx(np.mean(pairs))


def test_auroc_of_many_videos_draws_videos():
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 9, 40)
    truths = [np.arange(n) == rng.integers(n) for n in lengths]
    scores = [rng.integers(0, 6, n) + 2 * truth for n, truth in zip(lengths, truths, strict=True)]
    found = step_auroc(scores, truths, rounds=300)
    assert found.value == pytest.approx(auroc(np.concatenate(scores), np.concatenate(truths)))
    assert found.low < found.value < found.high and found.n == 40
    drawn = np.random.default_rng(0).integers(0, 40, (300, 40))  # the first draws of seed 0
    chosen = [
        auroc(np.concatenate([scores[i] for i in row]), np.concatenate([truths[i] for i in row]))
        for row in drawn
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(chosen, [2.5, 97.5])))
    assert step_auroc(scores, [np.zeros(n, bool) for n in lengths]).n == 0


def test_spearman():
    assert spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 25, 1000])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: 1 - ... by Pearson, 4.5 / sqrt(4.5 * 5)
    assert spearman(np.array([0, 5, 5, 9]), np.array([1, 3, 2, 4])) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )
    assert math.isnan(spearman(np.ones(4), np.arange(4)))


def test_diversity():
    assert diversity(np.eye(3)) == pytest.approx(1)
    assert diversity(np.ones((4, 2))) == pytest.approx(0)
    assert diversity(np.array([[1.0, 0], [1, 1]])) == pytest.approx(1 - math.sqrt(0.5))
    assert math.isnan(diversity(np.ones((1, 2))))
    texts = ["The red ring moves left.", "the red ring stops"]
    assert diversity(word_vectors(texts)) == pytest.approx(1 - 3 / math.sqrt(5 * 4))


def test_bootstrap_is_seeded_and_covers():
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    one, again = bootstrap(values), bootstrap(values)
    assert one == again and one != bootstrap(values, seed=1)
    assert one.value == pytest.approx(values.mean()) and one.n == 400
    half = 1.96 * values.std() / 20  # what the normal approximation says
    assert one.low == pytest.approx(values.mean() - half, abs=0.02)
    assert one.high == pytest.approx(values.mean() + half, abs=0.02)
    narrow = bootstrap(values, level=0.5)
    assert narrow.high - narrow.low < 0.4 * (one.high - one.low)


def test_bootstrap_leaves_out_what_is_not_there():
    some = bootstrap([True, float("nan"), True, False])
    assert some.value == pytest.approx(2 / 3) and some.n == 3
    none = bootstrap([float("nan")])
    assert none.n == 0 and math.isnan(none.value)
    certain = bootstrap(np.ones(5))
    assert (certain.low, certain.high) == (1, 1)


def test_paired_differences_are_narrower():
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 3, 300)  # what both methods find hard
    one, other = hard + 0.5 + rng.normal(0, 0.3, 300), hard + rng.normal(0, 0.3, 300)
    gain = paired(one, other)
    assert gain.low > 0.4 and gain.high < 0.6
    assert bootstrap(one).low < bootstrap(other).high  # apart, they can't be told
    assert paired(other, one).value == pytest.approx(-gain.value)


def test_any_statistic_can_be_drawn_again():
    values = np.arange(50.0)
    median = bootstrap_of(lambda chosen: np.median(values[chosen], -1), 50, rounds=500)
    assert median.value == 24.5 and 10 < median.low < 24.5 < median.high < 40
    big = bootstrap(np.zeros(5_000), rounds=1_000)  # drawn in blocks
    assert big == (0, 0, 0, 5_000)
