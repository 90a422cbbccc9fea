"""DAPO (arXiv 2503.14476): every token weighs the same, a wider clip upwards, a limit of length.

Its resampling of groups without signal is left out; `frac_reward_zero_std` says how many there are.
"""

from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.loss_type = "dapo"
    config.epsilon_high = 0.28
    config.rewards = ("accuracy", "overlong")
    longest = config.max_completion_length
    config.reward_options.overlong = {"longest": longest, "cache": longest // 4}
    return config
