"""What all methods of group-relative RL share; `configs/METHOD.py` says what differs.

Keys that TRL has bear TRL's names.
"""

from ml_collections import ConfigDict

from experiments.configs.scale import scale


def base(arg: str) -> ConfigDict:
    """GRPO: `:tiny`, on the toy world and at a size for two CPU cores (the default); `:videos`, on
    an annotation file and at a size for a model of billions of parameters.
    """
    if arg not in ("", "tiny", "videos"):
        raise ValueError(f"no mode {arg!r}; choose from tiny, videos")
    config = ConfigDict()
    config.recipe = "rl"
    config.model = "tiny"
    config.seed = 0
    config.steps = 100

    # What is asked: one question about each of `batch` videos a step (experiments/tasks.py)
    config.batch = 8
    config.dataset = "toy"  # or a reader's name (data/readers.py): manifest, video_r1, nextqa ...
    config.annotations = ""  # of that: its file or folder
    config.validation = ""  # the same, for evaluations
    config.roots = ()  # folders of the videos, where they are not the annotations' own
    config.level = "full"  # of toy clips
    config.clips = 64  # distinct toy clips to train on; 0: ever new ones
    # Asked about, all where none is named; or "caption". These the bundled model knows least.
    config.tasks = ("first", "new_colour", "side", "what", "which")
    config.routed = False  # only what has a route; to a file's items rules give one
    config.frames = 16  # shown of a video, evenly spaced; 0: all of a toy clip
    config.video_pixels = 0  # most of a frame (Qwen3-VL: of a clip); 0: as the model's files say
    config.workers = 2  # processes that read videos
    config.timeout = 60.0  # seconds that one of them may be silent
    config.system = "You are a careful observer of videos."
    config.answer_by = "word"  # or letter
    config.prompt_tokens = 224  # prompts are padded to this, or to the next larger bucket

    # Data expansion, M views of each example (experiments/views.py)
    config.views = "plain"
    config.num_views = 2  # of `importance` and `reworded`
    config.null_option = True  # of `counterfactual`: "None of the above" is offered
    config.pool = 64  # frames of a video that `importance` chooses among; all of a toy clip
    config.scorer = "change of difference deflickered"  # of `importance` (surprise.baselines)
    config.coverage = "stratified"  # of `importance` (data.variants)
    config.frame_temperature = 0.5
    config.share_responses = False  # every view's prompt learns from the answers to all

    # Sampling, G answers to each view
    config.num_generations = 8
    config.watched_generations = 1  # of views that only inform rewards
    config.max_completion_length = 12
    config.temperature = 1.0
    config.top_p = 1.0
    config.top_k = 0

    # Rewards (experiments/rewards.py, or path/to/file.py:function) and who is compared with whom
    config.rewards = ("accuracy",)
    config.reward_weights = ()  # () is 1 each
    config.reward_options = ConfigDict()  # by reward, its keywords
    config.advantage = "group"
    config.advantage_eps = 1e-4
    config.judge = ConfigDict(
        {"model": "", "url": "", "max_tokens": 16, "timeout": 60.0, "retries": 3, "workers": 8,
         "cache": ""}
    )  # fmt: skip

    # The loss (experiments/rl.py)
    config.loss_type = "grpo"
    config.importance_sampling_level = "token"
    config.epsilon = 0.2
    config.epsilon_high = 0.0  # 0: as epsilon
    config.delta = 0.0  # 0: none
    config.beta = 0.0  # of the KL to the model at the start; 0 keeps no copy of it
    config.mask_truncated_completions = False

    # Updates
    config.num_iterations = 1  # over the same rollouts
    config.num_minibatches = 1
    config.learning_rate = 1e-4
    config.muon_learning_rate = 0.0
    config.ramp_steps = 5
    config.decay_share = 0.0
    config.weight_decay = 0.0
    config.clip = 1.0

    scale(config)
    config.micro_batches = 1  # of an update, to save memory

    # Seeing and keeping
    config.eval_every = 0  # steps; 0: never
    config.eval_batches = 4
    config.patience = 64  # groups in a row without signal, before an explanation
    config.log_every = 1
    config.save_every = 20
    config.keep = 2  # checkpoints, the last ones
    config.best = ""  # figure of an evaluation: its best is kept too, and exported; "": the last
    if arg == "videos":
        config.steps, config.save_every = 1000, 50
        config.dataset = "manifest"
        config.tasks = ()
        config.video_pixels = 128 * 28 * 28
        config.prompt_tokens, config.max_completion_length = 1024, 64
        config.answer_by = "letter"
        config.learning_rate = 1e-6
        config.compute_dtype, config.remat = "bfloat16", True
    return config
