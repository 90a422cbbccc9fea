"""Scoring: every switch of SPIKE at its recommended value, and those of the run."""

from ml_collections import ConfigDict

from surprise.settings import Settings


def get_config(arg: str = "") -> ConfigDict:
    """The configuration of `saccade score`.

    `:tiny` looks at few frames, for a quick try; `:toy` is for clips of the toy world, of which the
    bundled models see every frame.
    """
    config = ConfigDict({**Settings().to_dict()})
    config.dtype = "auto"  # float32 on a CPU, bfloat16 elsewhere
    config.hf_compat = ""  # rule set of positions and prompts; "" is the newest
    config.attention = "auto"  # back end: auto, xla, cudnn (NVIDIA GPU), splash (TPU)
    config.batch = 8  # videos in flight on each device; without a history, steps
    config.driver = "auto"  # single, pmapped (a replica per device; auto if several), sharded
    config.mesh = (1, 1, 1)  # of `sharded`: devices along data, fsdp and tensor
    config.processes = 1  # of several, each scores its share; `--merge` joins what they write
    config.process = 0  # this one
    config.coordinator = ""  # host:port of process 0, for jax.distributed; "" does without
    config.timeout = 60.0  # seconds that a decoder may be silent before it is killed
    config.roots = ()  # folders, besides its own, that a manifest may name videos in
    config.pictures = True  # a PNG per video
    config.report = True  # report.html over all videos
    if arg == "tiny":
        config.schedule, config.steps = "fixed", 6
        config.budget, config.hypothesis_tokens, config.caption_tokens = 8, 12, 12
    elif arg == "toy":
        config.schedule, config.steps = "fixed", 16
        config.observation, config.history = "pair", "none"
        config.hypotheses, config.hypothesis_tokens, config.caption_tokens = 8, 24, 24
        config.posterior, config.reduction, config.score = "probe", "sum", "evidence"
        config.budget = 4
    elif arg:
        raise ValueError(f"score.py has no mode {arg!r}; choose from tiny, toy")
    return config
