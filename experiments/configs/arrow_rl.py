"""ArrowRL (arXiv 2506.03340): an answer should differ from the one to the reversed video."""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.views = "backwards"
    config.watched_generations = 1
    config.rewards = ("accuracy", "reversal")
    config.reward_weights = (1.0, 0.25)
    config.reward_options.reversal = {"gamma": 0.75}
    return config
