"""A module put together from what is trained and what is frozen.

Trained is all of a module, all but its vision tower, or nothing but low-rank adapters of its
decoder's projections: W + alpha / rank · A B (LoRA, Hu et al. 2021, arXiv 2106.09685, eq. 3).
Gradients and optimizer know of that alone. Model code sees a module like any other, for adapters
are added to their kernels before it is made: no copy of the base is kept, but an update holds the
sum and its gradient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from experiments.arguments import UsageError
from experiments.mesh import Driver, dotted, sharded, single

OFF = {
    "mesh": [1, 1, 1],
    "freeze_tower": False,
    "lora_rank": 0,
    "lora_alpha": 32.0,
    "compute_dtype": "float32",
    "remat": False,
    "ema_decay": 0.0,
    "best": "",
}
"""Options of scale at values that change nothing."""
DTYPES = ("float32", "bfloat16")
_ADAPTED = re.compile(r"decoder\.layers\.(attention\.[qkvo]|mlp\.(gate|up|down))\.kernel$")

Adapters = dict[str, dict[str, Array]]
"""By a projection's path: `a` [layers, in, rank] and `b` [layers, rank, out], float32."""


def check(config: dict[str, Any]) -> None:
    """Raises UsageError where an option of scale makes no sense."""
    for key, right, why in (
        ("compute_dtype", config["compute_dtype"] in DTYPES, f"choose from {', '.join(DTYPES)}"),
        ("lora_rank", config["lora_rank"] >= 0, "it must be positive, or 0 for no adapters"),
        ("lora_alpha", config["lora_alpha"] > 0, "it must be positive"),
        ("ema_decay", 0 <= config["ema_decay"] < 1, "it must be at least 0 and less than 1"),
    ):
        if not right:
            raise UsageError(f"--config.{key} is {config[key]!r}; {why}")


@dataclass(frozen=True)
class Assembly:
    """How a module is made of trained parameters, and all else that it is made of."""

    graph: nnx.GraphDef
    frozen: nnx.State
    """What is not trained, in the dtype that is computed in."""
    dtype: str
    scale: float
    """Of adapters; 0: there are none, and what is trained are parameters of the module."""
    mesh: Mesh | None
    """Over which parameters and batches are spread; None: one device."""

    def module(self, params: Any, frozen: Any = None) -> nnx.Module:
        """The module of trained parameters; a jitted function passes `frozen` as an argument."""
        frozen = self.frozen if frozen is None else frozen
        if self.scale:
            return nnx.merge(self.graph, _adapted(frozen, params, self.scale))
        return nnx.merge(self.graph, _cast(params, self.dtype), frozen)

    def driver(self, params: Any) -> Driver:
        """The module where it is to run."""
        return driver(self.module(params), self.mesh)


def assemble(
    module: nnx.Module, config: dict[str, Any], mesh: Mesh | None
) -> tuple[Assembly, nnx.State | Adapters]:
    """What the module is made of, and the part of it that is trained. Nothing is copied."""
    graph, params, frozen = _split(module, config)
    rank, scale = config["lora_rank"], 0.0
    if rank:
        params, scale = _adapters(frozen, rank, config["seed"]), config["lora_alpha"] / rank
    return Assembly(graph, frozen, config["compute_dtype"], scale, mesh), params


def untouched(module: nnx.Module, config: dict[str, Any]) -> nnx.Module:
    """The module as it is, whatever is trained later: a copy of what updates replace.

    Shares with the other all that is frozen; with adapters that is everything.
    """
    graph, params, frozen = _split(module, config)
    dtype = config["compute_dtype"]
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.array(leaf, dtype), params), frozen)


def driver(module: nnx.Module, mesh: Mesh | None) -> Driver:
    """A module on its device, or spread over a mesh."""
    return single(module) if mesh is None else sharded(module, mesh)


def _cast(tree: Any, dtype: str) -> Any:
    """Arrays in a dtype; those that have it already are not copied."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _split(module: nnx.Module, config: dict[str, Any]) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Graph, trained and frozen parameters; layers of the graph compute in the chosen dtype."""
    dtype = config["compute_dtype"]
    if dtype != "float32":
        module = nnx.merge(*nnx.split(module))  # whose layers can be told so
        for _, layer in nnx.iter_modules(module):
            if isinstance(layer, nnx.Linear | nnx.Embed):
                layer.dtype = jnp.dtype(dtype)

    def is_trained(path, _) -> bool:
        return not (config["lora_rank"] or (config["freeze_tower"] and "vision" in path))

    graph, params, frozen = nnx.split(module, is_trained, ...)
    return graph, params, _cast(frozen, dtype)


def _adapters(frozen: nnx.State, rank: int, seed: int) -> Adapters:
    """Adapters that change nothing yet: a from N(0, 1 / in), b zero; the same on every device."""
    generator = np.random.default_rng([seed, rank])
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(frozen)[0]:
        if _ADAPTED.search(name := dotted(path)):
            *layers, inputs, outputs = leaf.shape
            a = generator.standard_normal((*layers, inputs, rank), np.float32) / inputs**0.5
            b = np.zeros((*layers, rank, outputs), np.float32)
            found[name.removesuffix(".kernel")] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    return found


def _adapted(base: nnx.State, adapters: Adapters, scale: float) -> nnx.State:
    """The base with adapters added to their kernels; summed in float32."""

    def one(path, leaf):
        own = adapters.get(dotted(path).removesuffix(".kernel"))
        if own is None:
            return leaf
        return (leaf.astype(jnp.float32) + scale * (own["a"] @ own["b"])).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, base)
