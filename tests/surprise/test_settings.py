import json

import pytest

from surprise import Prompts, Settings, SettingsError


@pytest.mark.parametrize(
    "values,message",
    [
        ({"budget": 0}, "budget is 0; it must be at least 1"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"hypotheses": 0}, "hypotheses is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"tau": 0.0}, "tau is 0.0; it must be positive"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"caption_temperature": -0.1}, "caption_temperature"),
        ({"score": "jsd"}, "score is 'jsd'; choose from kl, js, evidence"),
        ({"posterior": "yesno"}, "posterior is 'yesno'; choose from nll, probe"),
        ({"yes": ()}, "yes must list"),
        ({"yes": ("no",)}, "'no' is listed under both"),
        ({"caption_tokens": 0}, "history 'captions' needs captions"),
        ({"other": True}, "other with posterior 'nll' needs likelihood 'ratio'"),
        ({"other_prior": 1.0, "posterior": "probe"}, "other_prior is 1.0"),
        ({"schedule": "fixed", "steps": 4}, "window is 4; it must be below the 4 steps"),
        ({"min_frames": 200}, "min_frames is 200; it must not pass cap, 128"),
    ],
)
def test_bad_values_are_named_in_one_line(values, message):
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_defaults_are_the_recommended_ones():
    settings = Settings()
    assert (settings.posterior, settings.reduction, settings.tau) == ("nll", "mean", 1.0)
    assert (settings.score, settings.history, settings.schedule) == ("kl", "captions", "paper")
    assert (settings.hypotheses, settings.window, settings.hypothesis_tokens) == (3, 4, 25)
    assert (settings.temperature, settings.top_p, settings.jitter) == (1.0, 0.9, False)
    assert (settings.budget, settings.frames_tau, settings.gumbel) == (64, 0.7, False)
    assert settings.segments == "ends_at"


def test_json_round_trip():
    settings = Settings(seed=7, yes=("ja",), prompts=Prompts(system=""))
    values = json.loads(json.dumps(settings.to_dict()))
    assert Settings.from_dict(values) == settings
    assert Settings.from_dict({"window": 2, "tau": 2}) == Settings(window=2, tau=2.0)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"windows": 4}, "no such setting: windows"),
        ({"prompts": {"probes": ""}}, "no such setting: prompts.probes"),
        ({"prompts": {"probe": "true?"}}, "prompts.probe must contain"),
        ({"prompts": {"probe": 1}}, "prompts.probe is 1; it must be text"),
        ({"prompts": "short"}, "prompts is 'short'; it must be a table"),
        ({"budget": "64"}, "budget is '64'; it must be a whole number"),
        ({"budget": 6.5}, "budget is 6.5; it must be a whole number"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"refill": "no"}, "refill is 'no'; it must be true or false"),
        ({"tau": "hot"}, "tau is 'hot'; it must be a number"),
        ({"yes": "yes"}, "yes is 'yes'; it must be a list of texts"),
        ({"no": ["no", 0]}, "it must be a list of texts"),
        ({"budget": 0}, "budget is 0; it must be at least 1"),
    ],
)
def test_a_file_of_settings_is_checked(values, message):
    with pytest.raises(SettingsError, match=message):
        Settings.from_dict(values)
