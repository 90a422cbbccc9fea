"""Supervised training of the bundled models on the toy world, from scratch."""

from ml_collections import ConfigDict

from experiments.configs.scale import scale

_MODES = ("tiny", "tiny-qwen3", "blind")


def get_config(arg: str = "tiny") -> ConfigDict:
    """`:tiny`, the bundled Qwen2.5-VL (the default); `:tiny-qwen3`, the bundled Qwen3-VL; `:blind`,
    the bundled `tiny`, made to answer without looking.
    """
    if arg not in _MODES:
        raise ValueError(f"sft.py has no mode {arg!r}; choose from {', '.join(_MODES)}")
    config = ConfigDict()
    config.recipe = "sft"
    config.model = "tiny" if arg == "blind" else arg  # or a directory
    config.fresh = True  # its weights are drawn by the seed; not those of a directory
    config.decoder = ""  # of this model, embeddings included: what it begins with, where named
    config.seed = 0
    config.steps = 7000
    config.warmup_steps = 1000  # of the tower, on dense labels
    config.easy_steps = 300  # after that, with one or two shapes only
    config.mix = ConfigDict({"step": 0.44, "clip": 0.38, "brief": 0.18})
    config.pairs = 192  # a batch of dense labels, in temporal patches
    config.windows = 24  # a batch of lessons at a step
    config.clips = 12  # a batch of lessons about a clip
    config.brief_clips = 20  # a batch of lessons about a few frames of a clip
    config.blind = False  # lessons about a clip come with another one's video
    config.brief_frames = (4, 8)  # as many of them as one of these says
    config.drills = 6  # clips of which a batch of lessons has drills beside it
    config.drill_steps = 2500  # lessons after which they are learned, and fewer keep them
    config.drills_after = 2
    config.answer_tokens = 32
    # Of the pieces of a prompt in tokens, and of what is asked in (rows, tokens), short and long
    # rows. What fits in none is an error; what finds all those taken that it fits in is left out.
    config.lengths = ConfigDict(
        {
            "step": {"patches": 3, "window": 52, "observation": 20,
                     "before": ((1, 56),), "after": ((3, 40), (2, 48))},
            "clip": {"patches": 8, "window": 148, "before": ((6, 40), (5, 56))},
            "brief": {"patches": 4, "window": 84, "before": ((3, 40), (2, 48))},
            "drill": ((2, 56), (2, 96)),
        }
    )  # fmt: skip
    config.shares = ConfigDict(
        {"predict": 0.5, "prior": 1.0, "posterior": 1.0, "caption": 1.0, "claim": 1.5,
         "clip_caption": 1.0, "word": 1.0, "letter": 1.5, "lookup": 2.0, "cells": 0.3}
    )  # fmt: skip
    config.learning_rate = 2e-3
    config.muon_learning_rate = 3e-3
    config.ramp_steps = 50
    config.decay_share = 0.75
    config.weight_decay = 0.0
    config.clip = 1.0
    if arg == "tiny-qwen3":
        # It writes the time of every temporal patch out.
        config.lengths.step.window, config.lengths.step.observation = 68, 32
        config.lengths.clip.window, config.lengths.brief.window = 224, 116
        config.decoder = "tiny"  # reads from the start, so it is taught to see
        config.steps = 4500
        config.drill_steps = 0
        config.mix.step, config.mix.clip = 0.38, 0.44
        config.shares.letter = 2.5
    if arg == "blind":
        # All that its video is good for in such lessons is unlearned, and the wording is relied on.
        config.fresh, config.blind = False, True
        config.steps, config.ramp_steps = 120, 5
        config.warmup_steps = config.easy_steps = config.drill_steps = 0
        config.mix.step, config.mix.clip, config.mix.brief = 0.0, 1.0, 0.0
        config.shares.clip_caption = config.shares.cells = 0.0
    scale(config)  # over a mesh a batch is split where its side divides; each device has the rest
    config.freeze_tower = arg == "blind"
    config.matmul_precision = "BF16_BF16_F32"  # with AMX half again as fast
    config.log_every = 10
    config.save_every = 200
    config.keep = 2  # checkpoints, the last ones
    return config
