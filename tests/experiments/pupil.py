"""A model of about ten thousand parameters that speaks the bundled tokenizer, for tests of RL."""

import jax
import jax.numpy as jnp
from flax import nnx

import vlm
from experiments.arguments import plain, read_config
from vlm.config import TINY, Qwen25Vision, TextConfig, VLMConfig
from vlm.loading import TOKENIZER, VLM
from vlm.processor import Processor
from vlm.weights import random_weights

CONFIG = VLMConfig(
    vision=Qwen25Vision(
        depth=1, hidden=8, heads=1, mlp=8, out=8, patch=8, window=32, full_layers=(0,)
    ),
    text=TextConfig(
        vocab=TINY.text.vocab, hidden=8, mlp=8, layers=1, heads=1, kv_heads=1, head_dim=8,
        rope_theta=200.0, rope_sections=(1, 1, 2), tied=True,
    ),
    image_token=TINY.image_token, video_token=TINY.video_token,
    vision_start_token=TINY.vision_start_token, vision_end_token=TINY.vision_end_token,
)  # fmt: skip
SMALL = ["--config.batch=4", "--config.frames=4", "--config.max_completion_length=4"]


def make(seed=0, scale=10.0):
    """Kernels so large that what is seen, and where, changes what is said."""
    model = random_weights(CONFIG, seed=seed, dtype=jnp.float32)
    graph, params = nnx.split(model)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if "scale" in jax.tree_util.keystr(path) else scale * leaf, params
    )
    model = nnx.merge(graph, params)
    pixels = (64 * 64, 64 * 64)  # of a frame
    choices = {"image_pixels": pixels, "video_pixels": pixels}
    return VLM(
        model, CONFIG, Processor.from_pretrained(TOKENIZER, CONFIG, **choices), "pupil", False
    )


def saved(directory, **choices):
    """The folder of such a model, for commands."""
    vlm.save(make(**choices), directory)
    return str(directory)


def config(method, *changes):
    return plain(read_config(f"{method}.py:tiny", [*SMALL, *changes]))
