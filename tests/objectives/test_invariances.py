"""What must not change, on numbers that hypothesis chooses; one shape, few programs."""

import functools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from programs import compiled, value_and_grad

import objectives as o

SHAPE = (2, 2, 4)
L = 3
quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)


def grids(elements, size):
    return st.lists(elements, min_size=size, max_size=size).map(np.array)


# Quarters, among them equal ones: exact in float32, and so are their sums.
REWARDS = grids(st.integers(-4, 8), 16).map(lambda x: (x / 4).astype(np.float32).reshape(SHAPE))
FLAGS = grids(st.booleans(), 16).map(lambda x: x.reshape(SHAPE))
LOGPS = grids(st.integers(-40, 0), 16 * L).map(
    lambda x: (x / 8).astype(np.float32).reshape(*SHAPE, L)
)
MASKS = grids(st.integers(1, L), 16).map(lambda x: np.arange(L) < x.reshape(*SHAPE, 1))

ADVANTAGES = {
    "group_zscore": (o.group_zscore, 0),
    "group_centred": (lambda r, v, eps: o.group_centred(r, v), 1),
    "leave_one_out": (lambda r, v, eps: o.leave_one_out(r, v), 1),
    "batch_zscore": (o.batch_zscore, 0),
    "joint_zscore": (o.joint_zscore, 0),
    "share_grpo": (o.share_grpo, 0),
    "mixture": (o.mixture, 0),
    "hierarchical": (o.hierarchical, 0),
    "joint mean, group std": (functools.partial(o.normalise, mean="joint"), 0),
}
EVERYTHING = np.ones(SHAPE, bool)


@functools.cache
def advantages(name, eps=0.0):
    return compiled(lambda r, v: ADVANTAGES[name][0](r, v, eps=eps))


@pytest.mark.parametrize("name", ADVANTAGES)
@quick
@given(REWARDS, FLAGS, st.integers(-3, 3), st.permutations(range(4)))
def test_advantages(name, rewards, valid, shift, order):
    ours = advantages(name)(rewards, valid)
    np.testing.assert_allclose(
        advantages(name)(rewards + np.float32(shift), valid), ours, atol=1e-5
    )
    power = ADVANTAGES[name][1]
    scaled = advantages(name)(rewards * np.float32(4), valid)
    np.testing.assert_allclose(scaled, ours * 4.0**power, atol=1e-5)
    permuted = advantages(name)(rewards[..., order], valid[..., order])
    np.testing.assert_allclose(permuted, ours[..., np.array(order)], atol=1e-5)
    variants = advantages(name)(rewards[:, ::-1], valid[:, ::-1])
    np.testing.assert_allclose(variants, ours[:, ::-1], atol=1e-5)
    assert not np.any(ours[~valid]) and np.all(np.isfinite(ours))


@quick
@given(REWARDS, FLAGS)
def test_joint_is_standard_over_the_grid_and_grpo_where_there_is_one_variant(rewards, valid):
    joint = np.asarray(advantages("joint_zscore")(rewards, valid), np.float64)
    for ours, given_, here in zip(joint, rewards, valid, strict=True):
        assert abs(ours.sum()) < 1e-4
        if here.any() and np.ptp(given_[here]) > 0:
            assert np.std(ours[here], ddof=1) == pytest.approx(1, abs=1e-4)
        else:
            assert not ours.any()
    single = rewards.reshape(4, 1, 4), valid.reshape(4, 1, 4)
    np.testing.assert_array_equal(
        _joint_single(*single).reshape(SHAPE), advantages("group_zscore")(rewards, valid)
    )


_joint_single = compiled(functools.partial(o.joint_zscore, eps=0.0))

LOSSES = {
    "grpo": (o.grpo_loss, "sequences"),
    "dr_grpo": (functools.partial(o.dr_grpo_loss, length=L), "sequences"),
    "dapo": (o.dapo_loss, "tokens"),
    "gspo": (o.gspo_loss, "sequences"),
    "cispo": (o.cispo_loss, "tokens"),
}


@functools.cache
def losses(name):
    loss, total = LOSSES[name]

    def program(logp, behaviour, advantages, mask, count):
        return loss(logp, behaviour, advantages, mask, **{total: count})

    return value_and_grad(program)


@pytest.mark.parametrize("name", LOSSES)
@quick
@given(LOGPS, LOGPS, REWARDS, MASKS, st.permutations(range(4)), FLAGS)
def test_losses(name, logp, behaviour, scores, mask, order, half):
    """Micro-batches add up, the order in a group means nothing, and so does what is padding."""
    program = losses(name)
    total = np.float32(mask.sum() if LOSSES[name][1] == "tokens" else 16)
    value, gradient = program(logp, behaviour, scores, mask, total)
    parts = [
        program(logp, behaviour, scores, mask & here[..., None], total) for here in (half, ~half)
    ]
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(value), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(parts[0][1] + parts[1][1], gradient, rtol=1e-4, atol=1e-6)
    turned = program(*(x[:, :, order] for x in (logp, behaviour, scores, mask)), total)
    assert float(turned[0]) == pytest.approx(float(value), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(turned[1], gradient[:, :, np.array(order)], rtol=1e-4, atol=1e-6)
    poisoned = program(np.where(mask, logp, np.float32(np.nan)), behaviour, scores, mask, total)
    np.testing.assert_array_equal(poisoned[0], value)
    np.testing.assert_array_equal(poisoned[1], gradient)


@quick
@given(LOGPS, REWARDS, MASKS)
def test_on_policy_gspo_and_grpo_have_one_gradient(logp, scores, mask):
    total = np.float32(16)
    grpo, gspo = (losses(name)(logp, logp, scores, mask, total)[1] for name in ("grpo", "gspo"))
    np.testing.assert_allclose(grpo, gspo, rtol=1e-5, atol=1e-7)


_behaves, _terms = compiled(o.behaves), compiled(o.crr_terms)


@quick
@given(FLAGS, FLAGS, FLAGS.map(lambda x: x[..., 0]))
def test_relations(correct, other, dynamic):
    """A constant answer earns no CRR where it must change; perfect answers earn all of it."""
    for terms in (_terms(correct, other), _terms(other, correct)):
        assert all(np.all((part >= 0) & (part <= 1)) for part in terms)
    constant = _terms(correct, _behaves(correct, EVERYTHING, dynamic))
    shown = constant.original + constant.counterfactual
    all_right_or_wrong = correct.all(-1) | ~correct.any(-1)
    assert not shown[dynamic & all_right_or_wrong].any()
    answers = np.broadcast_to(~dynamic[..., None], SHAPE)  # right on the copy where it is static
    perfect = _terms(EVERYTHING, _behaves(answers, EVERYTHING, dynamic))
    assert np.all(perfect.original == 1)
    assert np.all(perfect.counterfactual == 1)


TEXTS = st.text(alphabet="ABCDab yesno.0123456789,:-()<>answer/is*\n", max_size=60) | st.text()


@settings(quick, max_examples=200)
@given(TEXTS, TEXTS)
def test_graders_take_any_text(text, reference):
    assert o.parse_option(text, 4) in (None, *"ABCD")
    assert o.parse_yes_no(text) in (None, True, False)
    number = o.parse_number(text)
    assert number is None or np.isfinite(number)
    interval = o.parse_interval(text)
    assert interval is None or interval[0] < interval[1]
    assert 0 <= o.rouge_l(text, reference) <= 1 and 0 <= o.rouge_mean(text, reference) <= 1
    assert o.rouge_l(text, reference) == o.rouge_l(reference, text)
    assert o.word_error_rate(text, text) == 0 and 0 <= o.ocr_reward(text, reference) <= 1
    assert o.format_reward(text) in (0, 1)
    assert o.parse_judge(text) is None or 0 <= o.parse_judge(text) <= 1
    for letter in "ABCD":
        grade = o.grade_option(f"<think>{text}</think><answer>{letter}</answer>", letter, 4)
        assert grade == o.Grade(1.0, True)


TIMES = st.tuples(st.integers(0, 50), st.integers(0, 50))


@quick
@given(TIMES, TIMES, st.integers(-50, 50), st.integers(-50, 50))
def test_numbers_graded(first, second, prediction, correct):
    iou = o.temporal_iou(first, second)
    assert 0 <= iou <= 1 and iou == o.temporal_iou(second, first)
    assert o.temporal_iou(first, second, duration=50) <= iou
    strict = o.mean_relative_accuracy(prediction, correct)
    assert 0 <= strict <= o.mean_relative_accuracy(prediction, correct, strict=False) <= 1
    assert o.mean_relative_accuracy(correct, correct) == 1
    assert 0 <= o.relative_accuracy(prediction, correct) <= 1
    lengths = np.array(sorted((*first, *second)))
    assert np.all(np.diff(_penalty(lengths)) <= 0)


_penalty = compiled(functools.partial(o.overlong_penalty, longest=40, cache=15))
