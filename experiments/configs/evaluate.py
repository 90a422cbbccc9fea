"""Evaluation: how well scores tell when something happens, and what a frame budget buys by them."""

from ml_collections import ConfigDict

from experiments.configs import score


def get_config(arg: str = "") -> ConfigDict:
    """The configuration of `saccade evaluate`, on top of that of `saccade score`.

    "" is for a published set with annotated moments, `:toy` for the whole evaluation on the toy
    world, `:demo` for its table of scores on a few dozen clips.
    """
    config = score.get_config()
    config.dataset = ""  # a reader's name (oops, funqa, laughter, manifest ...), or toy
    if not arg:
        config.annotations = ""  # the set's file or folder
        config.traces = ""  # trace.jsonl of `saccade score`; "" scores the set's videos first
        config.deltas = (0.25, 1.0)  # seconds, of Acc@delta
        config.pixel_height = 128  # of the frames that pixel baselines see
        config.pictures = config.report = False
        return config
    if arg not in ("toy", "demo"):
        raise ValueError(f"evaluate.py has no mode {arg!r}; those there are: toy, demo")
    config.dataset = "toy"
    config.schedule, config.steps, config.window = "fixed", 16, 4
    config.history, config.hypotheses = "none", 8
    config.hypothesis_tokens = config.caption_tokens = 32
    config.batch = 64
    config.observations = ("pair",)  # what a step observes: pair, frame, or both one after another
    config.world = 0  # seed of the clips
    config.full_validation, config.full_test = 200, 500
    config.easy_validation, config.easy_test = 100, 200  # the level without distractors
    config.brief_validation, config.brief_test = 60, 200  # the level of the frame budget
    config.budgets = (4, 8, 16)  # frames of 32
    config.gate_windows, config.gate_clips = 160, 240  # fresh clips of what the model must know
    config.pairs = 300  # of questions about fresh clips and their mirrored or reversed copies
    config.moments = 300  # brief ones of fresh clips, asked about by 8 of 32 frames
    config.moment_kinds = ("recolor",)  # what happens at them: vanish, recolor, split, morph
    if arg == "demo":
        config.full_validation = config.full_test = 24
        config.hypotheses = 4
        for name in ("easy_validation", "easy_test", "brief_validation", "brief_test"):
            config[name] = 0
        config.gate_windows = config.gate_clips = config.pairs = config.moments = 0
    return config
