"""SPIKE-RL (arXiv 2509.23433): hypotheses that lead to frames from which a caption succeeds.

Views are the steps of the SPIKE pipeline, and a trajectory's hypotheses are one action.
"""

from ml_collections import ConfigDict

from data.toytasks import CAPTION_REQUEST
from experiments.configs.rl import base


def get_config(arg: str = ""):
    config = base(arg)
    config.steps = 60
    config.batch = 1
    config.clips = 8
    config.tasks = ("caption",)
    config.views = "steps"
    config.num_generations = 4  # trajectories; the paper has 3
    config.surprise = ConfigDict(
        {"schedule": "fixed", "steps": 16, "window": 4, "observation": "pair", "history": "none",
         "hypotheses": 3, "posterior": "nll", "score": "kl", "budget": 4}
    )  # fmt: skip
    config.train_from = 4  # steps before have shorter windows
    config.max_completion_length = 24  # of a hypothesis
    config.top_p = 0.9
    config.prompt_tokens = 112
    config.caption_question = CAPTION_REQUEST
    config.caption_tokens = 48
    config.rewards = ("clauses",)
    config.loss_type = "reinforce"
    config.advantage_eps = 1e-6
    config.beta = 0.1
    if arg == "videos":
        config.surprise.budget = 8
        config.max_completion_length, config.caption_tokens = 48, 128
        config.rewards = ("rouge",)
    return config
