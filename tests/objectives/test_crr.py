import numpy as np
import pytest
from programs import o

from objectives import Router

T, F = True, False
CORRECT = np.array([[T, T, F, F]])
BEHAVED = np.array([[T, F, F, T]])


def test_the_router():
    assert o.is_dynamic(np.arange(4)).tolist() == [True, True, True, False]
    assert [kind.name for kind in Router] == ["SPATIAL", "TEMPORAL", "SPATIOTEMPORAL", "STATIC"]


def test_behaviour():
    correct = np.array([[T, F, F], [T, F, F]])
    valid = np.array([[T, T, F], [T, T, F]])
    dynamic = np.array([T, F])
    assert o.behaves(correct, valid, dynamic).tolist() == [[F, T, F], [T, F, F]]
    lax = o.behaves(correct, valid, dynamic, require_valid=False)
    assert lax.tolist() == [[F, T, T], [T, F, F]]


@pytest.mark.parametrize(
    "pairing,original,counterfactual",
    [
        ("mean", [0.5, 0.5, 0, 0], [0.5, 0, 0, 0.5]),
        ("paired", [1, 0, 0, 0], [1, 0, 0, 0]),
        ("majority", [0, 0, 0, 0], [0, 0, 0, 0]),  # two of four are no majority
        ("any", [1, 1, 0, 0], [1, 0, 0, 1]),
        ("all", [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_pairings_by_hand(pairing, original, counterfactual):
    terms = o.crr_terms(CORRECT, BEHAVED, pairing=pairing)
    assert terms.original.tolist() == [original]
    assert terms.counterfactual.tolist() == [counterfactual]


def test_pairings_of_unequal_branches():
    three = np.array([[T, T, F]])
    terms = o.crr_terms(CORRECT, three, pairing="majority")
    assert terms.original.tolist() == [[1, 1, 0, 0]]
    assert terms.counterfactual.tolist() == [[0, 0, 0]]
    assert o.crr_terms(CORRECT, np.array([[T, T, T]]), pairing="all").original.tolist() == [
        [1, 1, 0, 0]
    ]
    with pytest.raises(ValueError, match=r"as many rollouts: \(1, 4\), \(1, 3\)"):
        o.crr_terms(CORRECT, three, pairing="paired")
    with pytest.raises((ValueError, TypeError), match="nobody"):
        o.crr_terms(CORRECT, three, pairing="nobody")


def test_without_gates_everybody_is_credited():
    terms = o.crr_terms(CORRECT, BEHAVED, gated=False)
    assert terms.original.tolist() == [[0.5] * 4]
    assert terms.counterfactual.tolist() == [[0.5] * 4]


def test_rewards_by_hand():
    formats = np.array([[1, 0, 1, 0]], np.float32), np.array([[0, 0, 0, 1]], np.float32)
    rewards = o.crpo_rewards(CORRECT, BEHAVED, formats, weight=0.5, format_weight=0.2)
    np.testing.assert_allclose(rewards.original, [[1.45, 1.25, 0.2, 0]], rtol=1e-6)
    np.testing.assert_allclose(rewards.counterfactual, [[1.25, 0, 0, 1.45]], rtol=1e-6)


def shares(rewards):
    return float(rewards.original.mean()), float(rewards.counterfactual.mean())


def test_policies_that_the_terms_were_made_for():
    """What one fixed way of answering earns, dynamic and static."""
    dynamic, static = np.array([T]), np.array([F])
    yes, no = np.full((1, 4), T), np.full((1, 4), F)

    def terms(correct, changed, kind, valid=yes):
        return shares(o.crr_terms(correct, o.behaves(changed, valid, kind)))

    # The same right answer whatever the video: nothing where it must change, all where it must not.
    assert terms(yes, yes, dynamic) == (0, 0)
    assert terms(yes, yes, static) == (1, 1)
    # Right on the video, and changed when it must: the maximum, in every term of both branches.
    assert terms(yes, no, dynamic) == (1, 1)
    assert shares(o.crpo_rewards(yes, o.behaves(no, yes, dynamic))) == (1.5, 1.5)
    # Always "None of the above": it earns R_behave on dynamic questions (the known hole), no CRR.
    assert terms(no, no, dynamic) == (0, 0)
    assert shares(o.crpo_rewards(no, o.behaves(no, yes, dynamic))) == (0, 1)
    assert terms(no, no, static) == (0, 0)
    # Gibberish is neither change nor agreement.
    assert terms(yes, no, dynamic, valid=no) == (0, 0)
    assert terms(yes, no, static, valid=no) == (0, 0)


def test_mean_pairing_cancels_under_a_zscore_in_each_branch():
    """R = c (1 + λ b̄): the factor drops out of the z-score, but for eps; elsewhere it acts."""
    correct = np.array([[T, T, T, T, F, F, F, F]])
    behaved = [np.arange(8)[None] < count for count in (0, 1, 8)]
    rewards = [o.crpo_rewards(correct, b).original for b in behaved]
    sign = 2.0 * correct - 1
    for reward, wanted in zip(rewards, (0.935239, 0.935250, 0.935298), strict=True):
        np.testing.assert_allclose(o.group_zscore(reward), wanted * sign, atol=1e-6)
        exact = o.group_zscore(reward, eps=0.0)
        np.testing.assert_allclose(exact, o.group_zscore(rewards[0], eps=0.0), atol=1e-6)
    # Without a std, the questions whose other branch o.behaves weigh more.
    for reward, factor in zip(rewards, (1, 1 + 0.5 / 8, 1.5), strict=True):
        np.testing.assert_allclose(o.group_centred(reward), factor * 0.5 * sign, rtol=1e-6)
    # Paired credit has levels of its own, and joint normalisation compares the branches.
    paired = o.crpo_rewards(correct, behaved[1], pairing="paired").original
    assert len(np.unique(np.asarray(o.group_zscore(paired)).round(4))) == 3
    joint = [
        o.joint_zscore(np.stack(o.crpo_rewards(correct, b), axis=1))[0, 0, 0] for b in behaved[:2]
    ]
    assert abs(float(joint[0] - joint[1])) > 0.05


def test_the_shortcut_is_seen_by_joint_normalisation_alone():
    branches = np.stack(o.crpo_rewards(np.full((1, 8), T), np.full((1, 8), F)), axis=1)
    np.testing.assert_array_equal(o.group_zscore(branches), np.zeros((1, 2, 8)))
    joint = o.joint_zscore(branches)
    np.testing.assert_allclose(joint[0], [[0.968058] * 8, [-0.968058] * 8], atol=1e-6)


def test_t_grpo():
    accuracy = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0.05, 0.2, 0, 0]], np.float32)
    shuffled = np.array([[1, 0], [1, 0], [0, 0]], np.float32)
    wanted = [[0.3, 0, 0.3, 0], [0, 0, 0, 0], [0, 0.3, 0, 0]]
    np.testing.assert_allclose(o.t_grpo_bonus(accuracy, shuffled), wanted)
    # 0.4 against 0.5: exactly at the ratio of 0.8 the order of frames still counts as used.
    edge = o.t_grpo_bonus(np.array([[0.4, 0.4]], np.float32), shuffled[:1])
    np.testing.assert_allclose(edge, [[0.3, 0.3]])


def test_arrow_rl():
    rewards = o.arrow_rl_reward(
        np.array([[1, 0], [1, 0]], np.float32),
        np.array([[0.2, 1], [0.2, 1]], np.float32),
        np.array([0.75, 0.8], np.float32),
    )
    np.testing.assert_allclose(rewards, [[1.2, 0], [1, 0]], rtol=1e-6)


def test_arrow_gev():
    iou = np.array([[0.5, 1], [0.5, 1]], np.float32)
    other = np.array([[0.2, 1], [0.2, 1]], np.float32)
    rewards = o.arrow_gev_reward(iou, other, np.array([T, F]))
    np.testing.assert_allclose(rewards, [[0.9, 1], [0.6, 1.5]], rtol=1e-6)
