"""Share-GRPO (arXiv 2505.16673): wordings of a question learn from each other's answers."""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.views = "reworded"
    config.num_views, config.num_generations = 2, 4
    config.share_responses = True
    config.advantage, config.advantage_eps = "share", 1e-6
    return config
