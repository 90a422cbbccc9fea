"""A module put together from what is trained and what is frozen.

Trained is all of a module, all but its vision tower, or nothing but low-rank adapters of its
decoder's projections (LoRA, Hu et al. 2021, arXiv 2106.09685). Gradients and optimizer know of that
alone. Model code sees a module like any other: it calls layers, and an adapted one is a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments.arguments import UsageError, plain
from experiments.configs.scale import scale
from experiments.mesh import Driver, here, put, sharded, shardings, single
from vlm.text import Decoder

OFF = plain(scale(ConfigDict()))
"""Options of scale at values that change nothing."""
DTYPES = ("float32", "bfloat16")
PRECISIONS = ("default", "BF16_BF16_F32")


def check(config: dict[str, Any]) -> None:
    """Raises UsageError where an option of scale makes no sense."""
    for key, right, why in (
        ("compute_dtype", config["compute_dtype"] in DTYPES, f"choose from {', '.join(DTYPES)}"),
        (
            "matmul_precision",
            config["matmul_precision"] in PRECISIONS,
            f"choose from {', '.join(PRECISIONS)}",
        ),
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
    mesh: Mesh | None
    """Over which parameters and batches are spread; None: one device."""

    def module(self, params: nnx.State, frozen: nnx.State | None = None) -> nnx.Module:
        """The module of trained parameters; a jitted function passes `frozen` as an argument."""
        frozen = self.frozen if frozen is None else frozen
        return nnx.merge(self.graph, _cast(params, self.dtype), frozen)

    def driver(self, params: nnx.State) -> Driver:
        """The module where it is to run."""
        return driver(self.module(params), self.mesh)

    def merged(self, params: nnx.State) -> nnx.Module:
        """The module as it is exported: kernels have adapters, if there are any, added to them."""
        module = nnx.merge(self.graph, here(params, self.mesh), here(self.frozen, self.mesh))
        for part in _projections(module):
            for name, layer in list(nnx.iter_children(part)):
                if isinstance(layer, Adapted):
                    setattr(part, name, layer.merged())
        return module


class Adapted(nnx.Module):
    """A linear layer with a low-rank one beside it: x W + scale · (x A) B (eq. 3, transposed)."""

    def __init__(
        self,
        layer: nnx.Linear,
        a: Float[Array, "*layers inputs rank"],
        b: Float[Array, "*layers rank outputs"],
        scale: float,
    ):
        self.layer, self.scale = layer, scale
        self.a, self.b = nnx.LoRAParam(a), nnx.LoRAParam(b)

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        return self.layer(x) + self.scale * jnp.dot(jnp.dot(x, self.a[...]), self.b[...])

    def merged(self) -> nnx.Linear:
        """One layer that does the same; the sum is made in float32."""
        kernel = self.layer.kernel[...]
        added = self.scale * (self.a[...] @ self.b[...])
        total = kernel.astype(jnp.float32) + added.astype(jnp.float32)
        self.layer.kernel = nnx.Param(total.astype(kernel.dtype))
        return self.layer


def assemble(
    module: nnx.Module, config: dict[str, Any], mesh: Mesh | None
) -> tuple[Assembly, nnx.State]:
    """What the module is made of, and the part of it that is trained, float32. Nothing is copied.

    `config`: freeze_tower, lora_rank, lora_alpha and seed (of adapters), compute_dtype.
    """
    module = _computing(module, config["compute_dtype"])
    if config["lora_rank"]:
        _adapt(module, config["lora_rank"], config["lora_alpha"], config["seed"])
    graph, params, frozen = nnx.split(module, _trained(config), ...)
    frozen = _cast(frozen, config["compute_dtype"])
    if mesh is not None:
        frozen, params = (
            jax.tree.map(put, part, shardings(part, mesh)) for part in (frozen, params)
        )
    return Assembly(graph, frozen, config["compute_dtype"], mesh), params


def untouched(module: nnx.Module, config: dict[str, Any]) -> nnx.Module:
    """The module as it is, whatever is trained later: a copy of what updates replace.

    Shares with the other all that is frozen; with adapters that is everything.
    """
    dtype = config["compute_dtype"]
    graph, params, frozen = nnx.split(_computing(module, dtype), _trained(config), ...)
    params = jax.tree.map(lambda leaf: jnp.array(leaf, dtype), params)
    return nnx.merge(graph, params, _cast(frozen, dtype))


def driver(module: nnx.Module, mesh: Mesh | None) -> Driver:
    """A module on its device, or spread over a mesh."""
    return single(module) if mesh is None else sharded(module, mesh)


def _trained(config: dict[str, Any]) -> Any:
    """Which variables are trained, as `nnx.split` takes it."""
    if config["lora_rank"]:
        return nnx.LoRAParam
    return lambda path, _: not (config["freeze_tower"] and "vision" in path)


def _computing(module: nnx.Module, dtype: str) -> nnx.Module:
    """The same parameters in a module of its own, whose layers compute in a dtype."""
    module = nnx.merge(*nnx.split(module))
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, nnx.Linear | nnx.Embed) and dtype != "float32":
            layer.dtype = jnp.dtype(dtype)
    return module


def _projections(module: nnx.Module) -> Iterator[nnx.Module]:
    """What holds the projections of decoders: their attention and their MLP."""
    for _, decoder in list(nnx.iter_modules(module)):
        if isinstance(decoder, Decoder):
            yield from (decoder.layers.attention, decoder.layers.mlp)


def _adapt(module: nnx.Module, rank: int, alpha: float, seed: int) -> None:
    """Puts adapters on projections. They change nothing yet: A from N(0, 1 / inputs), B is 0."""
    generator = np.random.default_rng([seed, rank])  # by numpy: the same on every device
    for part in _projections(module):
        for name, layer in list(nnx.iter_children(part)):
            if isinstance(layer, nnx.Linear):
                *layers, inputs, outputs = layer.kernel.shape
                a = generator.standard_normal((*layers, inputs, rank), np.float32) / inputs**0.5
                b = np.zeros((*layers, rank, outputs), np.float32)
                setattr(part, name, Adapted(layer, jnp.asarray(a), jnp.asarray(b), alpha / rank))


def _cast(tree: Any, dtype: str) -> Any:
    """Arrays in a dtype; those that have it already are not copied."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
