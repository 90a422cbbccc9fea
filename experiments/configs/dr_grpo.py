"""Dr.GRPO (arXiv 2503.20783): no division by the std, nor by an answer's length."""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.loss_type = "dr_grpo"
    config.advantage = "group_centred"
    return config
