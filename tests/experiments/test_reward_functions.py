"""Rewards against hand-worked values; and what a bad one is told."""

import numpy as np
import pupil
import pytest

from experiments import rewards
from experiments.arguments import UsageError
from objectives import crpo_rewards


def columns(completions, *, trained=2, **more):
    """Columns of completions in nested lists [B][M][G], watched views last; others by group."""
    place = [
        (b, m, g)
        for b, group in enumerate(completions)
        for m, view in enumerate(group)
        for g, _ in enumerate(view)
    ]
    place.sort(key=lambda at: at[1] >= trained)
    found = {
        "prompts": [""] * len(place),
        "completions": [completions[b][m][g] for b, m, g in place],
        "completion_ids": [[0] * 3 for _ in place],
        "place": place,
        "by": ["word"] * len(place),
        "options": [("left", "right", "None of the above")] * len(place),
        "answer": ["left"] * len(place),
        "kind": ["multiple_choice"] * len(place),
        "caption": [""] * len(place),
        "route": [""] * len(place),
    }
    by_group = {name: [values[b] for b, _, _ in place] for name, values in more.items()}
    return found | by_group


def asked(names, grid, told, **options):
    config = pupil.config("grpo")
    config |= {"rewards": names, "reward_options": options, "reward_weights": []}
    return rewards.rewarder(config, None)(grid, told)


@pytest.mark.parametrize(
    ("said", "by", "named"),
    [
        ("left", "word", "left"),
        ("  Left.", "word", "left"),
        ("A", "word", None),  # no letters where words are asked
        ("left right", "word", None),
        ("", "word", None),
        ("(B)", "letter", "B"),
        ("right", "letter", "B"),
        ("maybe", "letter", None),
    ],
)
def test_which_option_an_answer_names(said, by, named):
    assert rewards.chosen(said, ("left", "right"), by) == named


def test_crpo_rewards_are_those_of_the_objectives():
    """A dynamic group and a static one: right, wrong, null and unreadable answers."""
    said = [
        [["left", "right", "left", "x"], ["right", "left", "None of the above", "y"]],
        [["left", "left", "right", "left"], ["left", "right", "left", "y"]],
    ]
    told = columns(said, route=["temporal", "static"])
    found = asked(["behaviour", "relation"], (2, 2, 4), told, relation={"pairing": "paired"})
    correct = np.array([[1, 0, 1, 0], [1, 1, 0, 1]], bool)
    behaved = np.array([[1, 0, 1, 0], [1, 0, 1, 0]], bool)
    expected = np.stack(crpo_rewards(correct, behaved, weight=1.0, pairing="paired"), axis=1)
    np.testing.assert_allclose(found.total, expected)
    assert found.metrics["null_rate/original"] == 0
    assert found.metrics["null_rate/counterfactual"] == 1 / 8
    # Of 4 x 4 pairs of the dynamic group 2 x 2; of the static group's four altered videos 2.
    assert found.metrics["p_acc"] == 4 / 16 and found.metrics["agreement"] == 2 / 4


def test_t_grpo_pays_where_the_order_of_frames_matters():
    said = [
        [["left"] * 3 + ["right"], ["right", "left"]],
        [["left"] * 2 + ["right"] * 2, ["left"] * 2],
    ]
    found = asked(["accuracy", "temporal"], (2, 1, 4), columns(said, trained=1))
    # 3/4 >= 0.8 x 1/2, but 2/4 < 0.8 x 1
    np.testing.assert_allclose(found.total[:, 0], [[1.3, 1.3, 1.3, 0], [1, 1, 0, 0]])
    assert found.every["temporal"][8:] == [None] * 4  # shuffled answers earn nothing


def test_arrow_rl_pays_for_answers_unlike_those_to_the_reversed_video():
    said = [[["left", "right"], ["right"]], [["left", "right"], ["left"]]]
    found = asked(["accuracy", "reversal"], (2, 1, 2), columns(said, trained=1))
    # The reversed video's answer is wrong for the first: time matters. For the second it does not.
    np.testing.assert_allclose(found.total[:, 0], [[2, 0], [1, 0]])


def test_captions_by_clause_and_by_rouge():
    told = "The red ring moves left, the blue cross grows. Then the red ring vanishes."
    said = [[["the blue cross grows, the red ring moves left", "then the red ring vanishes", "no"]]]
    found = asked(["clauses"], (1, 1, 3), columns(said, caption=[told]))
    np.testing.assert_allclose(found.total[0, 0], [4 / 5, 2 / 4, 0])


def test_weights_and_rewards_that_do_not_apply():
    config = pupil.config("grpo") | {"rewards": ["accuracy", "overlong"]}
    config |= {"reward_weights": ["2", "0.5"]}
    config["reward_options"] = {"overlong": {"longest": 4, "cache": 2}}
    told = columns([[["left", "right"]], [["left", "x"]]], kind=["multiple_choice", "caption"])
    told["options"][2:] = [(), ()]
    found = rewards.rewarder(config, None)((2, 1, 2), told)
    # -1/2 for 3 of 4 tokens; a caption has no right answer, so that the rest counts alone
    np.testing.assert_allclose(found.total[:, 0], [[1.75, -0.25], [-0.25, -0.25]])
    assert np.isnan(found.parts["accuracy"][1]).all()
    assert found.metrics["rewards/accuracy/mean"] == 0.5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('x')", "reward bad failed: KeyError: 'x'"),
        ("return [1.0]", "reward bad gave 1 values for 2 completions"),
        ("return [1.0, float('nan')]", "reward bad, completion 1: nan; return None"),
        ("return [1.0, 'a']", "reward bad, completion 1: 'a' is no number"),
        ("return None", "reward bad failed: TypeError"),
    ],
)
def test_a_bad_reward_is_told_what_is_wrong(tmp_path, body, message):
    file = tmp_path / "mine.py"
    file.write_text(f"def bad(prompts, completions, **columns):\n    {body}\n")
    with pytest.raises(rewards.RewardError, match=message.replace("(", r"\(")):
        asked([f"{file}:bad"], (1, 1, 2), columns([[["left", "x"]]]))


def test_rewards_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="no reward 'acuracy'; choose from accuracy"):
        asked(["acuracy"], (1, 1, 2), {})
    with pytest.raises(UsageError, match="no file"):
        asked([f"{tmp_path}/none.py:f"], (1, 1, 2), {})
    with pytest.raises(UsageError, match="needs a judge"):
        asked(["match"], (1, 1, 2), {})
