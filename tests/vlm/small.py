"""A small model for the tests of this room, drawn without compiling its initialisers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlm.config import Qwen25Vision, TextConfig, VLMConfig
from vlm.model import Model

# Compiling is most of these tests' time; unoptimised code takes half of it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Windows of 2 x 2 merged cells, a cell of 2 x 2 patches; 8 values a patch.
CONFIG = VLMConfig(
    vision=Qwen25Vision(
        depth=2, hidden=32, heads=2, mlp=48, out=32, channels=1, patch=2, temporal_patch=2,
        merge=2, window=8, full_layers=(1,),
    ),
    text=TextConfig(
        vocab=40, hidden=32, mlp=48, layers=2, heads=4, kv_heads=2, head_dim=8,
        rope_theta=100.0, rope_sections=(1, 1, 2), tied=False,
    ),
    image_token=36, video_token=37, vision_start_token=38, vision_end_token=39,
)  # fmt: skip


def drawn(make, seed=0):
    """Graph and state of `make()`, every parameter drawn so that biases and norms matter too."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(make))

    def draw(path, leaf):
        centre = 1.0 if path[-2].key == "scale" else 0.0
        return jnp.asarray(centre + 0.25 * rng.normal(size=leaf.shape), leaf.dtype)

    return graph, jax.tree_util.tree_map_with_path(draw, state)


def model(config=CONFIG, seed=0, dtype=jnp.float32):
    return nnx.merge(*drawn(lambda: Model(config, dtype=dtype, rngs=nnx.Rngs(0)), seed))
