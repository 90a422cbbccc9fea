"""T-GRPO (Video-R1, arXiv 2503.21776): a bonus where shuffled frames would have hurt."""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.views = "shuffled"
    config.watched_generations = config.num_generations // 2
    config.rewards = ("accuracy", "temporal")
    config.reward_options.temporal = {"bonus": 0.3, "ratio": 0.8}
    config.beta = 0.04
    return config
