import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.types import Example
from data.variants import (
    METHODS,
    Sampling,
    Scores,
    cached_scores,
    contrast_leaves,
    importance,
    inverse_transform,
    places,
    segment_edges,
    uniform_places,
    views,
)

PEAK = np.array([0.1, 0.2, 0.9, 0.1, 0.3, 0.2, 0.8, 0.1])


@st.composite
def pools(draw):
    """(scores, budget): pools from one frame to forty, some flat, some of huge scores."""
    values = st.one_of(
        st.floats(-1e308, 1e308), st.floats(-3, 3), st.sampled_from([0.0, 1.0, 5e-324])
    )
    scores = draw(st.lists(values, min_size=1, max_size=40))
    return scores, draw(st.integers(1, len(scores)))


@settings(max_examples=150, deadline=None)
@given(
    pools(),
    st.sampled_from(METHODS),
    st.sampled_from([1e-300, 1e-3, 0.5, 1e6]),
    st.sampled_from(["zscore", "minmax"]),
    st.sampled_from([0, 0.1, 1]),
    st.booleans(),
)
def test_every_sampler_fills_its_budget(pool, method, temperature, standardise, rho, first):
    scores, budget = pool
    sampling = Sampling(
        budget,
        views=3,
        method=method,
        temperature=temperature,
        standardise=standardise,
        rho=rho,
        first_uniform=first,
    )
    chosen = places(scores, sampling, seed=5, id="v")
    assert chosen.shape == (3, budget) and chosen.dtype == np.int64
    assert chosen.min() >= 0 and chosen.max() < len(scores)
    steps = np.diff(chosen, axis=1)
    assert (steps >= (0 if method == "its" else 1)).all()
    if first:
        assert np.array_equal(chosen[0], uniform_places(len(scores), budget))
    covered = {"stratified": budget, "anchors": budget - budget // 2}.get(method, 0)
    if covered:
        edges = segment_edges(len(scores), covered)
        for row in chosen:
            assert np.histogram(row, edges - 0.5)[0].min() >= 1
    if method == "stratified":
        assert all(np.histogram(row, edges - 0.5)[0].max() == 1 for row in chosen)


@given(st.integers(1, 300), st.data())
@settings(max_examples=100, deadline=None)
def test_segments_are_equal_and_each_holds_its_uniform_place(pool, data):
    budget = data.draw(st.integers(1, pool))
    edges = segment_edges(pool, budget)
    assert (edges[0], edges[-1], len(edges)) == (0, pool, budget + 1)
    sizes = np.diff(edges)
    assert sizes.min() >= 1 and sizes.max() - sizes.min() <= 1
    even = uniform_places(pool, budget)
    assert ((edges[:-1] <= even) & (even < edges[1:])).all()


def test_segments_by_hand():
    assert segment_edges(7, 5).tolist() == [0, 1, 3, 4, 6, 7]
    assert uniform_places(7, 5).tolist() == [0, 2, 3, 4, 6]
    assert segment_edges(8, 4).tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("method", METHODS)
def test_one_uniform_view_is_plain_uniform(method):
    sampling = Sampling(4, views=1, method=method)
    assert places(PEAK, sampling, seed=9).tolist() == [[1, 3, 5, 7]]


def test_importance_by_hand():
    # z-scores of (0, 0, 3) are (-1, -1, 2) / sqrt 2; min-max (0, 0, 1).
    p = importance([0, 0, 3], temperature=np.sqrt(0.5))
    assert p == pytest.approx(np.array([1, 1, np.e**3]) / (2 + np.e**3))
    p = importance([0, 0, 3], temperature=0.5, standardise="minmax")
    assert p == pytest.approx(np.array([1, 1, np.e**2]) / (2 + np.e**2))
    assert importance([0.1] * 3).tolist() == [1 / 3] * 3
    assert importance([0, 1, 2], temperature=1e-308).tolist() == [0, 0, 1]


def counts(scores, sampling, draws):
    """How often each place is drawn over many examples."""
    taken = np.concatenate(
        [places(scores, sampling, seed=0, id=str(i)).reshape(-1) for i in range(draws)]
    )
    return np.bincount(taken, minlength=len(scores))


@pytest.mark.parametrize("method", METHODS)
def test_equal_scores_draw_evenly(method):
    # Twelve places, four of them a view; with anchors, two are fixed and two drawn from the rest.
    sampling = Sampling(4, views=1, method=method, first_uniform=False)
    drawn = counts(np.full(12, 0.1), sampling, 450)
    expected = np.full(12, 150.0)
    if method == "anchors":
        expected = np.where(np.isin(np.arange(12), uniform_places(12, 2)), 450, 90.0)
    # 0.1% of chi-square with 11 degrees; draws without replacement spread less than that.
    assert ((drawn - expected) ** 2 / expected).sum() < 31.3
    assert drawn.sum() == 1800


@pytest.mark.parametrize("method,rho", [("stratified", 0.0), ("mixture", 0.0), ("mixture", 0.4)])
def test_places_are_drawn_by_p(method, rho):
    scores = [0.0, 1.0, 2.0, 0.5, 1.5]
    sampling = Sampling(1, views=1, method=method, rho=rho, temperature=0.8, first_uniform=False)
    drawn = counts(scores, sampling, 1200) / 1200
    p = (1 - rho) * importance(scores, temperature=0.8) + rho / 5
    assert np.abs(drawn - p).max() < 4 * 0.5 / np.sqrt(1200)
    assert p.max() > 0.35


def test_p_is_renormalised_within_a_segment():
    # Segments (0, 1) and (2, 3): what is in the other one does not matter.
    scores = np.array([0.0, 1.0, 50.0, 50.0])
    sampling = Sampling(2, views=1, temperature=0.02, standardise="minmax", first_uniform=False)
    drawn = counts(scores, sampling, 1200) / 1200
    odds = np.exp(0.02 / 0.02)
    assert drawn[1] == pytest.approx(odds / (1 + odds), abs=0.05)
    assert drawn[2] == pytest.approx(0.5, abs=0.05)


def test_as_temperature_falls_the_best_of_each_segment_is_taken():
    def cold(method, budget, scores=PEAK):
        sampling = Sampling(
            budget, views=3, method=method, temperature=1e-9, rho=0, first_uniform=False
        )
        rows = places(scores, sampling, seed=1)
        assert (rows == rows[0]).all()
        return rows[0].tolist()

    scores = np.random.default_rng(2).random(37)
    best = [low + int(scores[low:high].argmax()) for low, high in pairwise(segment_edges(37, 6))]
    assert cold("stratified", 6, scores) == best
    assert cold("stratified", 2) == [2, 6]
    assert cold("mixture", 3) == [2, 4, 6]
    # Of three frames two are anchors.
    assert cold("anchors", 3, np.array([0.9, 0.8, 0, 0, 0, 0, 0, 0])) == [0, 2, 6]
    # Anchors 2 and 6 of 8 places, then the best of the rest: .3 at place 4 and .25 at 1.
    assert cold("anchors", 4, np.array([0.1, 0.25, 0.9, 0.1, 0.3, 0.2, 0.8, 0.1])) == [1, 2, 4, 6]


def test_bolt_by_hand():
    # min-max (0, .5, 1, .5), cubed (0, 1, 8, 1) / 8, CDF (0, .1, .9, 1).
    scores = [2.0, 3.0, 4.0, 3.0]
    # Quantiles 1/4, 5/12, 7/12, 3/4 all fall to place 2.
    assert inverse_transform(scores, 4).tolist() == [2, 2, 2, 2]
    # With power 1 the CDF is (0, .25, .75, 1).
    assert inverse_transform(scores, 4, power=1).tolist() == [1, 2, 2, 2]
    # An offset of .2: .05, .3, .55, .8 ; .99: .2475, .4975, .7475, .9975
    assert inverse_transform(scores, 4, offset=0.2).tolist() == [1, 2, 2, 2]
    assert inverse_transform(scores, 4, offset=0.99).tolist() == [2, 2, 2, 3]
    # Place 0 has no weight: no quantile falls on it.
    assert inverse_transform(scores, 1, offset=0.0).tolist() == [1]
    assert inverse_transform([5.0, 5.0, 5.0, 5.0], 4, offset=0.5).tolist() == [0, 1, 2, 3]


def test_bolt_visits_places_by_weight():
    scores = [2.0, 3.0, 4.0, 3.0]
    sampling = Sampling(3, views=1, method="its", first_uniform=False)
    drawn = counts(scores, sampling, 1000) / 3000
    assert drawn == pytest.approx([0, 0.1, 0.8, 0.1], abs=0.02)


def test_aks_by_hand():
    # A peak of 1 among twelve zeros, F = 4: best four .25 on average, mean 1/12: contrast 1/6.
    scores = np.zeros(12)
    scores[4] = 1.0
    assert contrast_leaves(scores, 4, contrast=0.15) == [(0, 12, 4)]
    # Above that, halves: left 1/4 - 1/6 = 1/12, right 0.
    assert contrast_leaves(scores, 4, contrast=0.2, depth=1) == [(0, 6, 2), (6, 12, 2)]
    assert contrast_leaves(scores, 4, contrast=0.08) == [(0, 12, 4)]
    # Shares end at one frame: quarters of three places, whatever the depth.
    quarters = [(0, 3, 1), (3, 6, 1), (6, 9, 1), (9, 12, 1)]
    assert contrast_leaves(scores, 4) == quarters
    # A branch may stop earlier than its sister: best four minus mean is 1 - .55 for all, 1 - .5 on
    # the left, .7 - .6 on the right.
    mixed = np.array([1.0] * 4 + [0.0] * 4 + [0.6] * 6 + [1.0, 0.2])
    left = contrast_leaves(mixed, 4, contrast=0.47, spread=0.4)
    assert left == [(0, 8, 2), (8, 12, 1), (12, 16, 1)]
    # And the standard deviation counts: .5 on the left.
    wide = contrast_leaves(mixed, 4, contrast=0.47, spread=0.6)
    assert wide == [(0, 4, 1), (4, 8, 1), (8, 12, 1), (12, 16, 1)]


def test_aks_takes_the_best_of_each_leaf():
    scores = np.array([0.0, 0.1, 0.2, 0.9, 1.0, 0.8, 0.3, 0.4, 0.5, 0.7, 0.6, 0.0])
    sampling = Sampling(4, views=1, method="aks", temperature=1e-9, first_uniform=False)
    # Quarters: 2; 4; 8; 9.
    assert places(scores, sampling).tolist() == [[2, 4, 8, 9]]
    # F = 5: two levels of halves leave one frame over, the best of those not yet taken: 3.
    five = Sampling(5, views=1, method="aks", temperature=1e-9, first_uniform=False)
    assert places(scores, five).tolist() == [[2, 3, 4, 8, 9]]


def test_a_view_depends_on_seed_id_and_number_alone():
    scores = np.random.default_rng(0).random(64)
    two = places(scores, Sampling(8, views=2, first_uniform=False), seed=3, id="a")
    five = places(scores, Sampling(8, views=5, first_uniform=False), seed=3, id="a")
    assert np.array_equal(two, five[:2])
    assert np.array_equal(places(scores, Sampling(8, views=2), seed=3, id="a")[1], two[1])
    others = [places(scores, Sampling(8), seed=s, id=i)[1] for s, i in [(4, "a"), (3, "b")]]
    rows = [*five, *others]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_each_view_may_have_a_temperature():
    scores = np.random.default_rng(0).random(64)
    mixed = Sampling(8, views=3, temperature=(1e-9, 1e6, 1e-9), first_uniform=False)
    rows = places(scores, mixed)
    assert np.array_equal(rows[0], rows[2]) and not np.array_equal(rows[0], rows[1])


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"budget": 0}, "budget and views must be positive"),
        ({"method": "best"}, "method is 'best'; choose from stratified"),
        ({"standardise": "rank"}, "choose from zscore, minmax"),
        ({"temperature": 0}, "temperature is 0; it must be positive"),
        ({"temperature": (0.5, float("nan"))}, "temperature is nan"),
        ({"temperature": (0.5,)}, "1 temperatures for 2 views"),
        ({"rho": 1.5}, r"rho is 1\.5"),
        ({"power": 0}, "power is 0"),
        ({"depth": -1}, "depth is -1"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**{"budget": 4, **changes})


@pytest.mark.parametrize(
    "scores,message",
    [
        ([0.5, 0.1], "budget is 4 but the pool holds 2 frames; lower the budget or"),
        ([0.5, float("nan"), 0.1, 0.2], "score 1 is nan; score the pool anew"),
        ([0.5, 0.1, float("-inf"), 0.2], "score 2 is -inf"),
        ([], "must be one list of numbers"),
    ],
)
def test_scores_that_cannot_be_used(scores, message):
    with pytest.raises(ValueError, match=message):
        places(scores, Sampling(4))


def pool_example(**changes):
    frames = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    example = Example(
        id="v1",
        video="v1.mp4",
        question="What is it?",
        options=("A cup", "A mug"),
        indices=np.arange(8) * 10,
        seconds=np.arange(8) / 3,
        frames=frames,
    )
    return example.replace(**changes)


SCORES = Scores(tuple(range(0, 80, 10)), tuple(PEAK.tolist()))


def test_views_share_out_the_pool():
    sampling = Sampling(4, views=3)
    found = views(pool_example(), SCORES, sampling, seed=2)
    rows = places(PEAK, sampling, seed=2, id="v1")
    assert [view.variant for view in found] == [0, 1, 2]
    for view, row in zip(found, rows, strict=True):
        assert view.id == "v1" and view.question == "What is it?" and view.transform is None
        assert view.indices.tolist() == (10 * row).tolist()
        assert view.frames[:, 0, 0, 0].tolist() == row.tolist()
        assert view.seconds.tolist() == (row / 3).tolist()
    undecoded = pool_example(indices=None, seconds=None, frames=None)
    bare = views(undecoded, SCORES, sampling, seed=2)
    assert [view.indices.tolist() for view in bare] == [view.indices.tolist() for view in found]
    assert all(view.frames is None and view.seconds is None for view in bare)


def test_views_of_what_was_not_scored():
    sampling = Sampling(4)
    with pytest.raises(ValueError, match="'v1' holds other frames than were scored"):
        views(pool_example(indices=np.arange(8)), SCORES, sampling)
    with pytest.raises(ValueError, match="7 scores for a pool of 8"):
        views(pool_example(), Scores(SCORES.indices, SCORES.values[:7]), sampling)
    with pytest.raises(ValueError, match="has a reversal; draw its views before"):
        views(pool_example(transform="reversal"), SCORES, sampling)
    with pytest.raises(ValueError, match="'v1': budget is 9 but the pool holds 8"):
        views(pool_example(), SCORES, Sampling(9))


class Scorer:
    """Scores a frame by its brightness and remembers what it was asked."""

    def __init__(self, fail_at=10**9):
        self.texts, self.fail_at = [], fail_at

    def __call__(self, frames, text):
        if len(self.texts) == self.fail_at:
            raise KeyboardInterrupt
        self.texts.append(text)
        return frames.mean(axis=(1, 2, 3)).tolist()


def test_scores_are_cached(tmp_path):
    path = tmp_path / "scores.jsonl"
    asked = [pool_example(id=str(i), question=f"Question {i}?") for i in range(4)]
    with pytest.raises(KeyboardInterrupt):
        cached_scores(path, asked, Scorer(fail_at=2), name="clip")
    scorer, loaded = Scorer(), []

    def load(example):
        loaded.append(example.id)
        return example.replace(frames=pool_example().frames, indices=pool_example().indices)

    bare = [example.replace(frames=None, indices=None, seconds=None) for example in asked]
    found = cached_scores(path, bare, scorer, name="clip", load=load)
    assert loaded == ["2", "3"] and scorer.texts == ["Question 2?", "Question 3?"]
    assert found["3"] == Scores(tuple(range(0, 80, 10)), tuple(float(i) for i in range(8)))
    # No scorer needed any more; another question or another scorer are another matter.
    assert cached_scores(path, bare) == found
    assert cached_scores(path, bare, name="clip") == found
    with pytest.raises(ValueError, match=r"no scores for example '0'.*give a scorer"):
        cached_scores(path, bare, name="siglip")
    with pytest.raises(ValueError, match="no scores for example '0'"):
        cached_scores(path, [bare[0].replace(question="Another?")])
    cached_scores(path, asked[:1], scorer, name="clip", with_options=True)
    assert scorer.texts[-1] == "Question 0?\nA cup\nA mug"
    cached_scores(path, asked[:1], scorer, name="siglip")
    assert len(path.read_text().splitlines()) == 6


def test_scores_made_elsewhere(tmp_path):
    path = tmp_path / "scores.jsonl"
    line = {"id": "v1", "indices": list(range(0, 80, 10)), "scores": PEAK.tolist()}
    path.write_text(json.dumps(line) + "\n")
    found = cached_scores(path, [pool_example()])
    assert found == {"v1": SCORES}
    assert len(views(pool_example(), found["v1"], Sampling(4))) == 2
    for change, message in [
        ({"scores": PEAK.tolist()[:7]}, r"scores\.jsonl, example 'v1': 7 scores for 8 frames"),
        ({"scores": [float("nan")] * 8}, "example 'v1': score 0 is nan"),
        ({"scores": "high"}, "example 'v1': scores must be one list of numbers"),
        ({"indices": [0.5] * 8}, "indices must be a list of frame numbers"),
    ]:
        path.write_text(json.dumps(line | change) + "\n")
        with pytest.raises(ValueError, match=message):
            cached_scores(path, [pool_example()])
    path.write_text('{"id": "v1"}\n')
    with pytest.raises(ValueError, match="line 1: needs id, indices and scores"):
        cached_scores(path, [pool_example()])


def test_a_scorer_that_fails_its_part(tmp_path):
    path = tmp_path / "scores.jsonl"
    with pytest.raises(ValueError, match="'v1' has no frames to score"):
        cached_scores(path, [pool_example(frames=None)], Scorer())
    with pytest.raises(ValueError, match="the scorer gave 3 scores for 8 frames"):
        cached_scores(path, [pool_example()], lambda frames, text: [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="scorer: score 0 is inf"):
        cached_scores(path, [pool_example()], lambda frames, text: [float("inf")] * 8)
    assert not path.exists()
