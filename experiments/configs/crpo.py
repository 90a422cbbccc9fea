"""CRPO (arXiv 2605.21988): the video and its mirrored or reversed copy, both of them trained.

Found: the terms, their gates, the router, the null option. Reconstructed: the sum and its weight,
the pairing, who is compared with whom. With `group` and the mean pairing, the relation reward is
cancelled by the std (see `objectives.crpo_rewards`): hence the joint comparison here.
"""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.routed = True
    config.views = "counterfactual"
    config.num_generations = 4  # of each branch
    config.rewards = ("behaviour", "relation", "option")
    config.reward_weights = (1.0, 0.5, 0.1)
    config.reward_options.relation = {"pairing": "mean", "gated": True}
    config.advantage = "joint"
    return config
