import numpy as np
import pytest

from data.router import LABELS
from data.transforms import (
    NULL_OPTION,
    branches,
    counterfactual,
    flip,
    null_letter,
    reverse,
    transform_for,
    with_null_option,
)
from data.types import Example

DIRECTIONS = ("It moves to the left.", "It moves to the right.")


def dots(step, count=6, size=48):
    """A bright dot on noise, `step` pixels further right in each frame; background unlike left
    and right of it, so that nothing is symmetric by chance."""
    rng = np.random.default_rng(0)
    ground = np.sort(rng.integers(0, 60, (size, size, 3), dtype=np.uint8), axis=1)
    frames = np.repeat(ground[None], count, axis=0)
    start = 6 if step > 0 else size - 10
    for t in range(count):
        frames[t, 20:24, start + step * t : start + step * t + 4] = 255
    return frames


def drift(frames):
    """Mean step of the bright mass along the width, in pixels a frame."""
    bright = (frames.min(axis=-1) > 200).sum(axis=1)
    places = (bright * np.arange(bright.shape[1])).sum(axis=1) / bright.sum(axis=1)
    return np.diff(places).mean()


def clip(**changes):
    example = Example(
        id="clip-7",
        video="clip.mp4",
        span=(2.0, 9.0),
        question="Where does the dot go?",
        options=DIRECTIONS,
        answer="B",
        route="either",
        caption="A dot moves.",
        events=((2.5, 3.0), (5.0, 5.0)),
        fps=10.0,
        frame_count=100,
        indices=np.array([20, 24, 25, 40, 41, 60]),
        seconds=np.array([2.0, 2.4, 2.5, 4.0, 4.1, 6.0]),
        frames=dots(5),
    )
    return example.replace(**changes)


def same(one, other):
    """Two examples equal in every field, arrays and record included."""
    for name, value in vars(one).items():
        theirs = vars(other)[name]
        if isinstance(value, np.ndarray):
            assert value.dtype == theirs.dtype
            exact = name != "seconds"
            np.testing.assert_allclose(value, theirs, rtol=0, atol=0 if exact else 1e-9)
        elif name == "events":
            np.testing.assert_allclose(value, theirs, rtol=0, atol=1e-9)
        else:
            assert value == theirs, name


def test_each_transform_undoes_itself():
    for transform in (flip, reverse):
        once = transform(clip())
        assert once.transform in ("flip", "reversal")
        assert not np.array_equal(once.frames, clip().frames)
        same(transform(once), clip())
        # Any times, not only tidy ones.
        ragged = clip(seconds=np.cumsum(np.random.default_rng(3).random(6)) + 1000 / 3)
        same(transform(transform(ragged)), ragged)


def test_what_a_flip_changes():
    mirrored = flip(clip())
    assert mirrored.frames[3, 4, 5].tolist() == clip().frames[3, 4, 48 - 1 - 5].tolist()
    same(mirrored.replace(frames=clip().frames, transform=None), clip())


def test_motion_turns_and_turns_back():
    frames = dots(5)
    assert drift(frames) == 5
    assert drift(flip(clip()).frames) == -5
    assert drift(reverse(clip()).frames) == -5
    # Both at once would make the first answer true again: why they are never composed.
    both = flip(reverse(clip()).replace(transform=None))
    assert drift(both.frames) == 5
    assert not np.array_equal(both.frames, frames)
    other = reverse(flip(clip()).replace(transform=None))
    assert np.array_equal(both.frames, other.frames)


def test_times_of_a_reversed_clip_rise():
    backwards = reverse(clip())
    # Mirrored within 2.0 ... 6.0: 8 - t, in rising order; so are frame numbers, within 20 ... 60.
    np.testing.assert_allclose(backwards.seconds, [2.0, 3.9, 4.0, 5.5, 5.6, 6.0])
    assert backwards.indices.tolist() == [20, 39, 40, 55, 56, 60]
    assert np.allclose(backwards.events, [(3.0, 3.0), (5.0, 5.5)])
    # Clip frame i shows the file's frame first + last - indices[i].
    shown = 20 + 60 - backwards.indices
    for frame, number in zip(backwards.frames, shown, strict=True):
        place = clip().indices.tolist().index(number)
        assert np.array_equal(frame, clip().frames[place])
    assert backwards.span == (2.0, 9.0)


@pytest.mark.parametrize("seed", range(20))
def test_any_rising_times_stay_rising_and_keep_their_ends(seed):
    rng = np.random.default_rng(seed)
    seconds = np.cumsum(rng.random(6)) * 10.0 ** rng.integers(-3, 5)
    turned = reverse(clip(seconds=seconds, events=())).seconds
    assert (np.diff(turned) > 0).all()
    assert (turned[0], turned[-1]) == (seconds[0], seconds[-1])
    # 0.2 + (0.9 - 0.2) is not 0.9 in floating point.
    ends = reverse(clip(seconds=np.linspace(0.2, 0.9, 6), events=())).seconds[[0, -1]]
    assert ends.tolist() == [0.2, 0.9]


def test_arguments_are_left_alone():
    example = clip()
    before = clip()
    for altered in (flip(example), reverse(example)):
        altered.frames[:] = 0
        altered.seconds[:] = altered.seconds + 1
    same(example.replace(seconds=before.seconds), before)
    assert reverse(example).seconds is not example.seconds


def test_never_both():
    with pytest.raises(ValueError, match=r"'clip-7' already has a flip.*alter the original"):
        reverse(flip(clip()))
    with pytest.raises(ValueError, match="already has a reversal"):
        flip(reverse(clip()))
    with pytest.raises(ValueError, match="already has a flip"):
        counterfactual(flip(clip()), seed=0)


def test_a_clip_must_be_decoded():
    bare = Example(id="x", video="x.mp4", route="spatial")
    with pytest.raises(ValueError, match="'x' has no frames yet; decode before a flip"):
        counterfactual(bare, 0)
    with pytest.raises(ValueError, match="events but no seconds"):
        reverse(clip(seconds=None, indices=None))
    plain = reverse(clip(seconds=None, indices=None, events=()))
    assert plain.seconds is None and drift(plain.frames) == -5


def test_the_route_decides():
    picks = {
        label: {transform_for(clip(id=str(i), route=label), 0) for i in range(40)}
        for label in LABELS
    }
    assert picks == {
        "spatial": {"flip"},
        "temporal": {"reversal"},
        "either": {"flip", "reversal"},
        "static": {"flip", "reversal"},
    }
    for route in ("", "sideways"):
        with pytest.raises(ValueError, match="'clip-7': route is "):
            transform_for(clip(route=route), 0)


def test_the_coin_is_fair_and_belongs_to_seed_and_id():
    flips = {
        seed: [transform_for(clip(id=f"v{i}"), seed) == "flip" for i in range(2000)]
        for seed in (0, 1)
    }
    for side in flips.values():
        assert abs(np.mean(side) - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert abs(np.mean(np.equal(flips[0], flips[1])) - 0.5) < 0.05
    assert transform_for(clip(id="v3"), 1) == ("flip" if flips[1][3] else "reversal")


@pytest.mark.parametrize("route", ["static", "either"])
def test_text_is_never_mirrored_by_choice(route):
    reading = clip(route=route, question="What is written on the sign?", options=())
    assert {transform_for(reading.replace(id=str(i)), 0) for i in range(30)} == {"reversal"}


def test_branches_share_question_pair_and_null_option():
    original, altered = branches(clip(), seed=4)
    assert original.transform is None and altered.transform == transform_for(clip(), 4)
    assert np.array_equal(original.frames, clip().frames)
    assert original.pair == altered.pair == original.id == altered.id == "clip-7"
    assert original.question == altered.question == clip().question
    assert original.options == altered.options == (*DIRECTIONS, NULL_OPTION)
    assert original.answer == altered.answer == "B"
    assert null_letter(original) == null_letter(altered) == "C"
    plain, _ = branches(clip(), seed=4, null_option=False)
    assert plain.options == DIRECTIONS


def test_null_option():
    once = with_null_option(clip())
    assert once.options == (*DIRECTIONS, NULL_OPTION) and null_letter(once) == "C"
    assert once.question == clip().question and once.answer == "B"
    same(with_null_option(once), once)
    own = clip(options=("Up", "NONE of the above.", "Down"))
    assert with_null_option(own) is own and null_letter(own) == "B"
    for open_question in (clip(options=()), clip(kind="yes_no", options=("Yes", "No"))):
        assert with_null_option(open_question) is open_question
        assert null_letter(open_question) is None
    with pytest.raises(ValueError, match="26 options: no letter left"):
        with_null_option(clip(options=tuple("abcdefghijklmnopqrstuvwxyz")))
