"""Data expansion and the layout of prompts: what is shown, and that it is there once."""

import jax
import numpy as np
import pupil
import pytest

from data.toyquestions import answer_text
from experiments import tasks
from experiments.rollout import Answers
from experiments.views import EXPANSIONS


@pytest.fixture(scope="module")
def found():
    return pupil.make()


def examples(method, *changes):
    config = pupil.config(method, *changes)
    return config, tasks.Toy(config)(0)


def test_a_batch_is_a_function_of_seed_and_number(found):
    def batch(number, *changes, **options):
        return Answers(found, pupil.config("crpo", *changes)).prompts(number, **options).trained

    one = batch(3)
    for leaf, again in zip(jax.tree.leaves(one), jax.tree.leaves(batch(3)), strict=True):
        np.testing.assert_array_equal(leaf, again)
    for other in (batch(4), batch(3, "--config.seed=1"), batch(3, split="validation")):
        assert not np.array_equal(one.frames.patches, other.frames.patches)


def test_toy_clips_come_again_after_as_many_as_there_are():
    """In whole batches, of those to train on alone."""

    def ids(clips, number, **options):
        config = pupil.config("grpo", f"--config.clips={clips}", "--config.batch=4")
        return [example.id for example in tasks.Toy(config)(number, **options)]

    batches = [ids(7, number) for number in range(4)]
    assert batches[:2] == batches[2:] and not {*batches[0]} & {*batches[1]}
    assert ids(0, 0) == batches[0] and ids(0, 2) != batches[0]
    assert ids(7, 0, split="validation") != ids(7, 2, split="validation")


def test_branches_ask_the_same_of_an_altered_video():
    config, found = examples("crpo")
    for example in found:
        original, altered = EXPANSIONS["counterfactual"](example, config).trained
        assert (original.question, original.options) == (altered.question, altered.options)
        assert original.options[-1] == "None of the above" and example.route
        side = slice(None, None, -1)
        turned = {"flip": (slice(None), slice(None), side), "reversal": (side,)}
        frames = original.frames[turned[altered.transform]]
        np.testing.assert_array_equal(frames, altered.frames)


def test_strive_draws_views_and_the_first_is_even():
    config, found = examples("strive", "--config.frames=8")
    for example in found:
        assert len(example.frames) == 32
        views = EXPANSIONS["importance"](example, config).trained
        assert [view.variant for view in views] == [0, 1]
        assert views[0].indices.tolist() == list(range(2, 32, 4))
        assert (np.diff(views[1].indices) > 0).all() and len(views[1].frames) == 8
        np.testing.assert_array_equal(example.frames[views[1].indices], views[1].frames)


def test_wordings_keep_the_answer():
    config, found = examples("share_grpo", "--config.num_views=4", "--config.batch=8")
    for example in found:
        views = EXPANSIONS["reworded"](example, config).trained
        assert len(views) == 4
        for view in views:
            assert answer_text(view) == answer_text(example)
            assert sorted(view.options) == sorted(example.options)


def test_watched_views_inform_rewards_only():
    config, found = examples("t_grpo")
    views = EXPANSIONS["shuffled"](found[0], config)
    assert len(views.trained) == len(views.watched) == 1
    own, other = (sorted(map(bytes, v.frames)) for v in (views.trained[0], views.watched[0]))
    assert own == other
    np.testing.assert_array_equal(views.trained[0].seconds, views.watched[0].seconds)
    views = EXPANSIONS["backwards"](found[0], config)
    np.testing.assert_array_equal(views.watched[0].frames, views.trained[0].frames[::-1])


def test_every_patch_is_laid_out_once(found):
    """Two wordings of a question share their clip's patches; two branches have their own."""
    share = Answers(found, pupil.config("share_grpo", "--config.frames=16")).prompts(0).trained
    branches = Answers(found, pupil.config("crpo", "--config.frames=16")).prompts(0).trained
    assert len(share.frames.patches) == 4 * 8 and len(branches.frames.patches) == 4 * 16
    assert share.ids.shape[:2] == branches.ids.shape[:2] == (4, 2)
    for prompts, patches in ((share, 8), (branches, 16)):
        shown = prompts.visual >= 0
        assert (shown.sum(-1) == 8 * 16).all()  # cells of 16 frames
        for b in range(4):
            rows = np.unique(prompts.visual[b][shown[b]])
            np.testing.assert_array_equal(rows, np.arange(patches * 16))
    np.testing.assert_array_equal(
        share.visual[:, 0][share.visual[:, 0] >= 0], share.visual[:, 1][share.visual[:, 1] >= 0]
    )


def test_captions_and_tasks_can_be_asked_for():
    _, found = examples("spike_rl")
    assert {example.kind for example in found} == {"caption"}
    assert all(example.answer == example.caption for example in found)
    _, found = examples("grpo", "--config.tasks=colour,count")
    assert {example.task for example in found} <= {"colour", "count"}
