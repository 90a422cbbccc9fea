"""Methods beside each other, at equal rollouts and equal steps, on the toy world.

A row is what `saccade train` would be told: FILE[:ARG] and KEY=VALUE, as words.
"""

from ml_collections import ConfigDict

from experiments.configs import strive

_RULES = {
    f"crpo-{who}-{std}-{pairing}": f"crpo.py:tiny null_option=false advantage={advantage} "
    f"reward_options.relation.pairing={pairing}"
    for who, std, advantage in (
        ("branch", "std", "group"),
        ("branch", "nostd", "group_centred"),
        ("joint", "std", "joint"),
        ("joint", "nostd", "joint_centred"),
    )
    for pairing in ("mean", "paired")
}
"""CRPO by who is compared with whom, whether by the std, and how answers are paired; "None of the
above" is offered in the row `crpo` alone, where a model that does not look may hide behind it.
"""
_MODES = ("crpo", "strive", "spike_rl", "methods")
_METHODS = (
    *("grpo", "dr_grpo", "dapo", "gspo", "t_grpo", "arrow_rl"),
    *("share_grpo", "strive", "crpo", "spike_rl"),
)


def get_config(arg: str = "crpo") -> ConfigDict:
    """`:crpo`, in all its forms, beside GRPO with twice the answers, T-GRPO and ArrowRL; `:strive`,
    beside GRPO; `:spike_rl`, beside the model that it starts from; `:methods`, each as it is.
    """
    if arg not in _MODES:
        raise ValueError(f"ablate.py has no mode {arg!r}; choose from {', '.join(_MODES)}")
    config = ConfigDict()
    config.seeds = 5
    config.base = ""  # a training run, of whose model all rows are made; "": each of its own
    config.shared = "steps=60 clips=0"  # changes to every row; its own come after them
    none = "full_validation=0 full_test=0 easy_test=0 brief_test=0 gate_windows=0 gate_clips=0"
    config.exam = f"evaluate.py:toy {none}"  # what comes of a run is put to; "": nothing
    # `figures` are shown, and compared with those of each of `controls`: train/NAME, a mean over
    # all steps; rise/NAME, from their first fifth to the last; eval/NAME, the last; exam/NAME.
    if arg == "crpo":
        # All begin blind, with what it takes to see. 64 answers a step: 8 to each of 8 questions,
        # views included; or 4 to each of 16, should CRPO's copies be worth no more than new videos.
        config.base = "sft.py:blind"
        config.exam += " moments=0"
        config.shared = (
            "steps=50 clips=0 learning_rate=5e-4 "
            "tasks=left_right,up_down,size,side,colour,shape,count"
        )
        config.rows = ConfigDict(
            {
                "start": "grpo.py:tiny routed=true learning_rate=0 steps=1",
                "grpo": "grpo.py:tiny routed=true num_generations=8",
                "grpo-16x4": "grpo.py:tiny routed=true num_generations=4 batch=16",
                "t_grpo": "t_grpo.py:tiny routed=true num_generations=4 watched_generations=4",
                "arrow_rl": "arrow_rl.py:tiny routed=true num_generations=7",
                "crpo": "crpo.py:tiny",
                **_RULES,
            }
        )
        config.controls = ("grpo", "grpo-16x4")
        config.figures = ("exam/p_acc", "exam/i_acc", "exam/static_acc", "exam/agreement",
                          "train/frac_reward_zero_std")  # fmt: skip
    elif arg == "strive":
        tasks = ",".join(strive.get_config().tasks)
        same = f"level=brief tasks={tasks} frames=8 prompt_tokens=160"
        # From a model made blind, too; learning rate of 1e-4, 2e-4 and 5e-4 the best for GRPO.
        config.base = "sft.py:blind mix.clip=0 mix.brief=1"
        config.shared = "steps=100 clips=0 learning_rate=2e-4"
        config.exam += " pairs=0 moments=600 moment_kinds=vanish,recolor,split,morph"
        config.rows = ConfigDict(
            {
                "start": f"grpo.py:tiny {same} learning_rate=0 steps=1",
                "grpo": f"grpo.py:tiny {same} num_generations=8",
                "strive": "strive.py:tiny",
            }
        )
        config.controls = ("grpo",)
        config.figures = ("exam/brief_acc", "train/reward", "train/frac_reward_zero_std",
                          "train/reward_std", "train/grad_norm")  # fmt: skip
    elif arg == "methods":
        config.seeds = 2
        config.shared = ""
        config.exam = ""
        config.rows = ConfigDict({method: f"{method}.py:tiny" for method in _METHODS})
        config.controls = ("grpo",)
        config.figures = ("rise/reward", "train/reward", "rise/frac_reward_zero_std")
    else:
        config.shared += " eval_every=60 eval_batches=64"
        config.exam = (
            "evaluate.py:toy full_validation=60 full_test=200 easy_test=0 brief_test=0 pairs=0 "
            "moments=0 gate_windows=0 gate_clips=120"
        )
        config.rows = ConfigDict(
            {
                "spike": "spike_rl.py:tiny learning_rate=0 steps=1 eval_every=1",
                "spike_rl": "spike_rl.py:tiny",
            }
        )
        config.controls = ("spike",)
        config.figures = ("exam/surprise_acc1", "exam/kl_acc1", "exam/diversity", "eval/reward",
                          "exam/gate_caption_event")  # fmt: skip
    return config
