"""GSPO (arXiv 2507.18071): the ratio of a whole sequence, in a narrow clip; four minibatches."""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.importance_sampling_level = "sequence"
    config.epsilon, config.epsilon_high = 3e-4, 4e-4
    config.num_minibatches = 4
    return config
