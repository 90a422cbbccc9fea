"""Where a model is trained and how much memory that takes: keys of every recipe of training."""

from ml_collections import ConfigDict


def scale(config: ConfigDict) -> ConfigDict:
    """Adds them, at values that change nothing."""
    config.mesh = (1, 1, 1)  # devices along data, fsdp and tensor; no number depends on it
    config.coordinator = ""  # host:port of process 0, where several processes share the mesh
    config.processes = 1  # of them; the coordinator "auto" knows itself, on TPU pods and Slurm
    config.process = 0  # this one
    config.unroll = True  # layers in line, but for remat: faster where they are few
    config.remat = False  # recompute activations in the backward pass, to save memory
    config.compute_dtype = "float32"  # or bfloat16; what is trained is kept in float32
    config.matmul_precision = "default"  # JAX's; BF16_BF16_F32 rounds the factors of products
    config.freeze_tower = False  # the vision tower, its merger included, stays as it is
    config.lora_rank = 0  # of adapters of the decoder's projections, trained alone; 0: none
    config.lora_alpha = 32.0  # what adapters add is multiplied by lora_alpha / lora_rank
    config.ema_decay = 0.0  # of an average of the parameters, evaluated and exported; 0: none
    return config
