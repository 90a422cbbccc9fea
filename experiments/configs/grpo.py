"""GRPO (arXiv 2402.03300): G answers to a question, compared with each other."""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    return base(arg)
