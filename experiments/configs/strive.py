"""STRIVE (arXiv 2604.01824): views by frames that matter, all their answers compared jointly."""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.level = "brief"  # what is asked about passes, and half of the frames may miss it
    if arg != "videos":
        config.tasks = ("brief_colour", "brief_shape", "brief_split", "brief_vanish")
    config.frames = 8
    config.prompt_tokens = 160
    config.views = "importance"
    config.num_views, config.num_generations = 2, 4
    config.advantage = "joint"
    return config
