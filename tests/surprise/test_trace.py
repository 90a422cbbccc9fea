import numpy as np
import pytest
from scripted import ScriptedModel

from surprise import (
    BeliefError,
    Episode,
    Prompts,
    Settings,
    VideoModel,
    advance,
    begin,
    watch,
)
from surprise.trace import sample_seeds

PROMPTS = Prompts(
    system="SYS",
    history="PAST {history}",
    predict="predict now",
    statement="statement please",
    probe="probe {statement} ?",
    caption="caption it",
    summary="summary of {history}",
)


def episode(name="a", steps=6, every=10):
    frames = tuple(range(0, steps * every, every))
    return Episode(id=name, frames=frames, seconds=tuple(frame / 25 for frame in frames))


def named(model, name):
    return [call for call in model.calls if call[0] == name]


def test_the_scripted_model_is_a_video_model():
    assert isinstance(ScriptedModel(), VideoModel)


def test_a_step_goes_in_the_order_of_the_method():
    model = ScriptedModel({"predict": ["dog runs", "cat sits"], "caption": ["The dog ran."]})
    settings = Settings(hypotheses=2, prompts=PROMPTS)
    viewing = begin(settings, episode())
    (viewing,) = advance(model, settings, [viewing])
    assert [call[0] for call in model.calls] == [
        "look", "generate", "nll", "observe", "nll", "generate"
    ]  # fmt: skip
    look, predict, prior, observe, posterior, caption = model.calls
    (context,) = look[1]
    assert (context.video, context.step, context.system) == ("a", 1, "SYS")
    assert (context.history, context.window) == ("", (0,))
    assert predict[1:3] == ("predict now", None)
    assert prior[1:] == ("statement please", None, [("dog runs", "cat sits")])
    assert observe[1] == ((1,),)
    # The same question about the same statements; only the observation is new.
    assert posterior[1:] == ("statement please", ((1,),), [("dog runs", "cat sits")])
    assert caption[1:3] == ("caption it", ((1,),))
    assert viewing.history == ("Then, The dog ran.",)
    assert viewing.steps[1].caption == "The dog ran."

    (viewing,) = advance(model, settings, [viewing])
    context = model.calls[6][1][0]
    # The caption of step 1 joins what step 2 is shown.
    assert context.history == "PAST Then, The dog ran."
    assert context.window == (0, 1)
    assert viewing.steps[2].history == "Then, The dog ran."


def test_steps_of_an_episode():
    settings = Settings(window=2)
    (steps,) = watch(ScriptedModel(), settings, [episode(steps=5)])
    assert [step.frame for step in steps] == [0, 10, 20, 30, 40]
    assert [step.seconds for step in steps] == [0.0, 0.4, 0.8, 1.2, 1.6]
    assert [step.window for step in steps] == [(), (0,), (0, 10), (10, 20), (20, 30)]
    assert [step.observation for step in steps] == [(), (10,), (20,), (30,), (40,)]
    assert steps[0].score == 0.0 and steps[0].hypotheses == ()
    for step in steps[1:]:
        assert len(step.hypotheses) == 3 and step.score == step.kl > 0
        assert sum(step.prior) == pytest.approx(1) and sum(step.posterior) == pytest.approx(1)
        assert step.shift == pytest.approx(np.subtract(step.posterior, step.prior))


def test_the_observation_can_be_a_pair():
    model = ScriptedModel()
    (steps,) = watch(model, Settings(observation="pair"), [episode(steps=3)])
    assert [call[1] for call in named(model, "observe")] == [((0, 1),), ((1, 2),)]
    assert [step.observation for step in steps] == [(), (0, 10), (10, 20)]
    assert steps[2].window == (0, 10)


def test_the_probe_asks_about_each_hypothesis_after_the_observation():
    model = ScriptedModel({"predict": ["dog runs", "Dog runs!", "cat sits"]})
    settings = Settings(posterior="probe", yes=("ja",), no=("nein",), prompts=PROMPTS)
    (steps,) = watch(model, settings, [episode(steps=2)])
    (probe,) = named(model, "p_yes")
    assert probe[1:] == (
        ((1,),), [["probe dog runs ?", "probe cat sits ?", ""]], ("ja",), ("nein",)
    )  # fmt: skip
    assert len(named(model, "nll")) == 1
    step = steps[1]
    assert step.posterior_nll is None and len(step.probe_yes) == 2
    joint = np.array(step.prior) * np.array(step.probe_yes)
    np.testing.assert_allclose(step.posterior, joint / joint.sum(), rtol=1e-9)
    assert step.evidence == pytest.approx(-np.log(joint.sum()))


def test_duplicates_and_empty_answers_are_left_out_and_reported():
    model = ScriptedModel({"predict": ["Hypothesis: dog runs", "dog runs.", "   "]})
    (steps,) = watch(model, Settings(prompts=PROMPTS), [episode(steps=2)])
    assert steps[1].hypotheses == ("dog runs",)
    assert (steps[1].duplicates, steps[1].empty) == (1, 1)
    assert steps[1].prior == (1.0,) and steps[1].kl == 0.0
    assert steps[1].tokens == (2,) and len(steps[1].prior_nll) == 1
    assert steps[1].evidence > 0

    model = ScriptedModel({"predict": ["", " ", "..."]})
    settings = Settings(posterior="probe", other=True, prompts=PROMPTS)
    (steps,) = watch(model, settings, [episode(steps=2)])
    assert steps[1].hypotheses == steps[1].prior == steps[1].posterior == ()
    assert steps[1].score == steps[1].evidence == 0.0 and steps[1].empty == 3


def test_something_else_takes_the_last_place():
    settings = Settings(posterior="probe", other=True)
    (steps,) = watch(ScriptedModel(), settings, [episode(steps=3)])
    for step in steps[1:]:
        assert len(step.prior) == len(step.hypotheses) + 1
        assert step.prior[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("score", ["kl", "js", "evidence"])
def test_the_score_is_the_one_asked_for(score):
    (steps,) = watch(ScriptedModel(), Settings(score=score), [episode(steps=3)])
    assert [step.score for step in steps] == [vars(step)[score] for step in steps]
    assert steps[1].score > 0


def test_history_of_captions_drops_the_oldest_past_its_words():
    model = ScriptedModel({"caption": ["one two three"]})
    settings = Settings(history_words=8, prompts=PROMPTS)
    watch(model, settings, [episode(steps=5)])
    sentence = "Then, one two three."  # 4 words
    assert [call[1][0].history for call in named(model, "look")] == [
        "",
        f"PAST {sentence}",
        f"PAST {sentence} {sentence}",
        f"PAST {sentence} {sentence}",
    ]
    assert not named(model, "summarize")


def test_history_is_summarised_once_it_passes_its_words():
    model = ScriptedModel({"caption": ["one two three"]})
    settings = Settings(history="summary", history_words=7, summary_tokens=9, prompts=PROMPTS)
    (steps,) = watch(model, settings, [episode(steps=5)])
    sentence = "Then, one two three."
    assert named(model, "summarize") == [
        ("summarize", (f"summary of {sentence} {sentence}",), "SYS", 9)
    ]
    assert [step.history for step in steps] == [
        "", "", sentence, "a short account", f"a short account {sentence}"
    ]  # fmt: skip


def test_without_history_captions_are_written_but_not_shown():
    model = ScriptedModel()
    (steps,) = watch(model, Settings(history="none"), [episode(steps=4)])
    assert all(call[1][0].history == "" for call in named(model, "look"))
    assert all(step.caption and not step.history for step in steps[1:])
    silent = ScriptedModel()
    watch(silent, Settings(history="none", caption_tokens=0), [episode(steps=4)])
    assert len(named(silent, "generate")) == 3  # the hypotheses only


@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(posterior="probe", jitter=True), Settings(history="summary")],
)
def test_a_video_is_scored_alike_alone_in_company_and_in_any_order(settings):
    one, two, three = episode("a", 6), episode("b", 9), episode("c", 2)
    (alone,) = watch(ScriptedModel(), settings, [two])
    together = watch(ScriptedModel(), settings, [one, two, three])
    turned = watch(ScriptedModel(), settings, [three, two, one])
    assert together[1] == turned[1] == alone
    assert together[0] == turned[2] and together[2] == turned[0]
    assert together[0][1].hypotheses != together[1][1].hypotheses  # each has its own luck


def test_viewings_at_different_steps_share_a_call():
    settings = Settings()
    early, late = begin(settings, episode("a")), begin(settings, episode("b"))
    model = ScriptedModel()
    (late,) = advance(model, settings, [late])
    early, late = advance(model, settings, [early, late])
    assert (early.step, late.step) == (2, 3)
    (alone,) = watch(ScriptedModel(), settings, [episode("b")])
    assert late.steps == alone[:3]


def test_seeds_depend_on_run_video_step_and_sample_only():
    seeds = sample_seeds(0, "a", 1, 3, kind=0)
    assert seeds.dtype == np.uint32 and len(set(seeds.tolist())) == 3
    assert sample_seeds(0, "a", 1, 5, kind=0)[:3].tolist() == seeds.tolist()
    others = [(1, "a", 1, 0), (0, "b", 1, 0), (0, "a", 2, 0), (0, "a", 1, 1), (0, "", 1, 0)]
    for seed, video, step, kind in others:
        assert not set(seeds.tolist()) & set(sample_seeds(seed, video, step, 3, kind=kind).tolist())
    # Fixed for good: numpy promises SeedSequence's streams.
    assert seeds.tolist() == [921707620, 2948490522, 1082841041]
    assert sample_seeds(0, "\udcff.mp4", 1, 1, kind=0).shape == (1,)


def test_sampling_is_what_the_settings_say():
    model = ScriptedModel()
    settings = Settings(
        temperature=1.1, top_p=0.8, top_k=50, hypothesis_tokens=7, caption_tokens=9, hypotheses=2
    )
    watch(model, settings, [episode("a", 2), episode("b", 2)])
    hypotheses, caption = (call[3] for call in named(model, "generate"))
    assert (hypotheses.max_tokens, hypotheses.top_k) == (7, 50)
    np.testing.assert_allclose(hypotheses.temperature, np.full((2, 2), 1.1), rtol=1e-6)
    np.testing.assert_allclose(hypotheses.top_p, np.full((2, 2), 0.8), rtol=1e-6)
    assert hypotheses.seeds.shape == (2, 2) and len(np.unique(hypotheses.seeds)) == 4
    assert caption.max_tokens == 9 and caption.temperature.tolist() == [[0.0], [0.0]]


def test_jitter_stays_within_its_bounds():
    model = ScriptedModel()
    watch(model, Settings(jitter=True, hypotheses=50), [episode(steps=2)])
    sampling = named(model, "generate")[0][3]
    assert np.abs(sampling.temperature - 1.0).max() <= 0.1 + 1e-6
    assert np.abs(sampling.top_p - 0.9).max() <= 0.05 + 1e-6
    assert np.ptp(sampling.temperature) > 0.15 and np.ptp(sampling.top_p) > 0.07


def test_a_model_that_answers_nan_is_reported_with_its_video():
    model = ScriptedModel(nan_at="b")
    with pytest.raises(
        BeliefError, match="step 1: the model's likelihoods are not finite"
    ) as caught:
        watch(model, Settings(), [episode("a"), episode("b")])
    assert caught.value.video == "b"
