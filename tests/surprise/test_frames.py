import numpy as np
import pytest

from surprise import Question, Selection, export, frame_indices, select_frames
from surprise.frames import METHODS, segment_bounds, segment_weights, uniform_frames

ONE_HIGH = np.array([0.0, 0, 0, 1.0986, 0, 0, 0, 0])


def test_segments_that_end_at_their_frame():
    # Frames 0, 3, 6, 9: what surprised at frame 6 happened in 4, 5, 6
    frames = frame_indices(10, 4)
    assert segment_bounds(frames, 10).tolist() == [[0, 0], [0, 4], [4, 7], [7, 10]]
    assert segment_bounds(np.array([1, 5]), 10).tolist() == [[0, 0], [0, 10]]
    assert segment_bounds(np.array([0]), 10).tolist() == [[0, 10]]


def test_equal_segments():
    frames = frame_indices(10, 4)
    assert segment_bounds(frames, 10, convention="equal").tolist() == [
        [0, 3], [3, 5], [5, 8], [8, 10]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="segments is 'half'"):
        segment_bounds(frames, 10, convention="half")


@pytest.mark.parametrize("count,high,low", [(8, 0.407, 0.085), (32, 0.134, 0.028)])
def test_sharpness_of_the_reference(count, high, low):
    scores = np.zeros(count)
    scores[3] = 1.099
    bounds = segment_bounds(frame_indices(300, count), 300, convention="equal")
    weights = segment_weights(scores, bounds)
    assert weights[3] == pytest.approx(high, abs=5e-4)
    assert weights[5] == pytest.approx(low, abs=5e-4)
    assert weights.sum() == pytest.approx(1.0)


def test_equal_scores_give_equal_weights_to_the_segments_there_are():
    frames = frame_indices(100, 5)
    equal = segment_bounds(frames, 100, convention="equal")
    assert segment_weights(np.full(5, 0.3), equal).tolist() == [0.2] * 5
    assert (
        segment_weights(np.full(5, 0.3), segment_bounds(frames, 100)).tolist() == [0] + [0.25] * 4
    )


def test_weights_survive_a_tiny_tau():
    bounds = segment_bounds(frame_indices(100, 3), 100, convention="equal")
    assert segment_weights(np.array([0.0, 1.0, 0.5]), bounds, tau=1e-300).tolist() == [0, 1, 0]


@pytest.mark.parametrize("frame_count,expected", [(150, 52.2), (300, 57.7), (900, 61.8)])
def test_distinct_frames_of_64_even_draws(frame_count, expected):
    counts = [
        len(
            select_frames(
                np.zeros(10), budget=64, frame_count=frame_count, segments="equal", seed=seed
            )
        )
        for seed in range(400)
    ]
    # A draw's spread is about 2.5; the mean of 400 is good to 0.13.
    assert np.mean(counts) == pytest.approx(expected, abs=0.6)


def test_gumbel_noise_drowns_the_score():
    bounds = segment_bounds(frame_indices(80, 8), 80, convention="equal")
    rng = np.random.default_rng(0)
    first = [
        np.argmax(segment_weights(ONE_HIGH, bounds, noise=rng.gumbel(size=8))) == 3
        for _ in range(4000)
    ]
    assert np.mean(first) == pytest.approx(0.2996, abs=0.03)


def test_draws_follow_the_weights_and_lie_within_their_segment():
    counts = np.zeros(800)
    for seed in range(300):
        counts[select_frames(ONE_HIGH, budget=8, frame_count=800, seed=seed)] += 1
    start, end = segment_bounds(frame_indices(800, 8), 800)[3]
    share = counts[start:end].sum() / counts.sum()
    # e^(1.0986 / .7) against six ones: segment 0 is none
    assert share == pytest.approx(4.804 / 10.804, abs=0.03)
    inside = counts[start:end]
    assert (np.array_split(inside, 4)[0].sum() / inside.sum()) == pytest.approx(0.25, abs=0.04)
    assert counts[end - 1] > 0 or counts[end - 2] > 0  # the frame that surprised can be drawn


def test_the_frame_that_surprised_belongs_to_its_segment():
    scores = np.zeros(8)
    scores[3] = 100.0
    frames = frame_indices(80, 8)
    chosen = select_frames(scores, budget=500, frame_count=80, seed=0)
    assert chosen.tolist() == list(range(frames[2] + 1, frames[3] + 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("segments", ["ends_at", "equal"])
@pytest.mark.parametrize("refill", [False, True])
def test_every_selection_is_sorted_distinct_seeded_and_within_budget(method, segments, refill):
    scores = np.random.default_rng(3).exponential(size=12)
    arguments = dict(budget=20, frame_count=90, method=method, segments=segments, refill=refill)
    chosen = select_frames(scores, seed=5, **arguments)
    assert chosen.dtype == np.int64
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < 90
    assert len(chosen) == 20 if refill or method == "uniform" else len(chosen) <= 20
    assert chosen.tolist() == select_frames(scores, seed=5, **arguments).tolist()
    by_chance = method not in ("uniform", "top") or (refill and method == "top")
    assert (chosen.tolist() != select_frames(scores, seed=6, **arguments).tolist()) == by_chance


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_beyond_the_video_takes_at_most_all_of_it(method):
    every = select_frames([0, 1, 0], budget=50, frame_count=7, method=method, refill=True)
    assert every.tolist() == list(range(7))
    some = select_frames([0, 1, 0], budget=50, frame_count=7, method=method)
    assert set(some) <= set(range(7))


def test_refill_reaches_the_budget_where_the_rest_has_no_odds():
    scores = np.array([0, 0, 5000.0, 0])
    chosen = select_frames(scores, budget=60, frame_count=100, refill=True, seed=1)
    start, end = segment_bounds(frame_indices(100, 4), 100)[2]
    assert len(chosen) == 60 and set(range(start, end)) <= set(chosen)


def test_refill_draws_as_if_it_had_gone_on():
    # Two segments of 2 frames with odds 3 : 1. Three distinct frames of four leave one out: going
    # on until three are distinct leaves out a frame of the second segment how often? By simulation.
    scores, frames = 0.7 * np.log([3.0, 1.0]), [1, 3]
    rng = np.random.default_rng(0)
    late = 0
    for _ in range(4000):
        seen: set[int] = set()
        while len(seen) < 3:
            seen.add(int(rng.integers(2) + (0 if rng.random() < 0.75 else 2)))
        late += not {2, 3} <= seen
    ours = 0
    for seed in range(2000):
        chosen = select_frames(
            scores, budget=3, frame_count=4, frames=frames, segments="equal", refill=True, seed=seed
        )
        ours += not {2, 3} <= set(chosen.tolist())
    assert ours / 2000 == pytest.approx(late / 4000, abs=0.035)


def test_uniform_takes_the_middles():
    assert uniform_frames(4, 8).tolist() == [1, 3, 5, 7]
    assert uniform_frames(3, 10).tolist() == [1, 5, 8]
    assert uniform_frames(9, 4).tolist() == [0, 1, 2, 3]
    scores = np.random.default_rng(0).random(5)
    chosen = select_frames(scores, budget=3, frame_count=10, method="uniform")
    assert chosen.tolist() == [1, 5, 8]


def test_top_takes_the_frames_of_the_best_scores():
    chosen = select_frames([0, 3, 1, 3, 2], budget=3, frame_count=41, method="top")
    assert chosen.tolist() == [10, 30, 40]
    assert select_frames([0, 3, 1, 3], budget=1, frame_count=31, method="top").tolist() == [10]


def test_one_per_interval_reaches_every_segment():
    bounds = segment_bounds(frame_indices(80, 8), 80)[1:]
    for seed in range(20):
        chosen = select_frames(
            ONE_HIGH, budget=9, frame_count=80, method="one_per_interval", seed=seed
        )
        assert all(((chosen >= start) & (chosen < end)).any() for start, end in bounds)
    with pytest.raises(ValueError, match="needs one for each of the 7 segments"):
        select_frames(ONE_HIGH, budget=6, frame_count=80, method="one_per_interval")


def test_half_even_half_by_score():
    chosen = select_frames(ONE_HIGH, budget=16, frame_count=400, method="linspace_half", seed=2)
    even = set(uniform_frames(8, 400).tolist())
    start, end = segment_bounds(frame_indices(400, 8), 400)[3]
    assert even <= set(chosen.tolist())
    assert all(start <= frame < end for frame in set(chosen.tolist()) - even)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"budget": 0}, "budget is 0; it must be at least 1"),
        ({"scores": []}, "scores must be one list"),
        ({"scores": [0.0, float("nan")]}, "score 1 is not a finite number"),
        ({"frame_count": 2}, "3 scores for a video of 2 frames"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"method": "best"}, "method is 'best'; choose from surprise, uniform"),
        ({"segments": "half"}, "segments is 'half'"),
        ({"frames": [0, 5]}, "3 scores at 2 frames"),
        ({"frames": [0, 9, 5]}, "frames must rise"),
        ({"frames": [0, 5, 30]}, "frames must rise and lie within the video"),
    ],
)
def test_bad_arguments_have_one_clear_line(change, message):
    arguments = dict(scores=[0.0, 1.0, 2.0], budget=4, frame_count=30) | change
    with pytest.raises(ValueError) as caught:
        select_frames(arguments.pop("scores"), **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def chosen(*frames):
    return Selection(
        method="surprise", budget=4, tau=0.7, seed=0, refill=False, segments="ends_at",
        gumbel=False, frames=frames, seconds=tuple(frame / 10 for frame in frames),
    )  # fmt: skip


def test_files_for_other_systems():
    selections = {"a": chosen(3, 9), "b": chosen(5)}
    questions = [Question("b", "q1", "Why?"), Question("a", "q2", "Who?"), Question("b", "q3", "")]
    assert export(selections, format="indices") == {"a": [3, 9], "b": [5]}
    assert export(selections, format="seconds") == {"a": [0.3, 0.9], "b": [0.5]}
    assert export(selections, format="aks") == [[3, 9], [5]]
    assert export(selections, format="aks", questions=questions) == [[5], [3, 9], [5]]
    assert export(selections, format="bolt") == {
        "a": [{"question_id": "a", "question": "", "frames": [0.3, 0.9]}],
        "b": [{"question_id": "b", "question": "", "frames": [0.5]}],
    }
    assert export(selections, format="bolt", questions=questions) == {
        "b": [
            {"question_id": "q1", "question": "Why?", "frames": [0.5]},
            {"question_id": "q3", "question": "", "frames": [0.5]},
        ],
        "a": [{"question_id": "q2", "question": "Who?", "frames": [0.3, 0.9]}],
    }
    with pytest.raises(ValueError, match="format is 'csv'"):
        export(selections, format="csv")
    with pytest.raises(ValueError, match="question 'q': no trace of video 'c'"):
        export(selections, format="bolt", questions=[Question("c", "q", "")])
