"""The few building blocks that the tower and the decoder share."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def linear(inputs: int, outputs: int, *, bias: bool, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with weights drawn from N(0, 0.02^2), as the originals are initialised."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=dtype,
        param_dtype=dtype,
        kernel_init=nnx.initializers.normal(0.02),
        dot_general=_dot,
        rngs=rngs,
    )


def factors(*arrays: Array) -> tuple[Array, ...]:
    """Factors of a matrix product, rounded as JAX's default matmul precision says.

    XLA leaves BF16_BF16_F32 out on CPU, where units made for it (AMX) are several times faster.
    """
    if jax.config.jax_default_matmul_precision != "BF16_BF16_F32":
        return arrays
    return tuple(array.astype(jnp.bfloat16) for array in arrays)


@jax.custom_vjp
def _product(
    x: Float[Array, "*rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*rows outputs"]:
    """x @ kernel; of the weight gradient's factors x comes first, which XLA turns around on CPU.

    JAX would put there what comes back: wider in an MLP, turned around together with all that made
    it, and another one for each layer that reads the same x.
    """
    return jnp.dot(*factors(x, kernel), preferred_element_type=x.dtype)


def _kept(x, kernel):
    return _product(x, kernel), factors(x, kernel)


def _gradients(kept, g):
    (x, kernel), dtype, (g,) = kept, g.dtype, factors(g)
    rows = tuple(range(x.ndim - 1))
    return (
        jnp.dot(g, kernel.T, preferred_element_type=dtype),
        jax.lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=dtype),
    )


_product.defvjp(_kept, _gradients)


def _dot(x, kernel, *_, **__):
    """`_product`, as `nnx.Linear` calls a matrix product."""
    return _product(x, kernel)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation; the statistics in float32 (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, *, eps: float, dtype, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((width,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return wide.astype(x.dtype) * scale


class LayerNorm(nnx.Module):
    """Layer normalisation; the statistics in float32 (Ba et al. 2016, eq. 4)."""

    def __init__(self, width: int, *, eps: float, dtype, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((width,), dtype))
        self.bias = nnx.Param(jnp.zeros((width,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        row = (1,) * (x.ndim - 1) + (-1,)
        scaled = wide * self.scale[...].astype(jnp.float32).reshape(row)
        return (scaled + self.bias[...].astype(jnp.float32).reshape(row)).astype(x.dtype)


class GatedMLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, eq. 6)."""

    def __init__(self, width: int, hidden: int, *, bias: bool, dtype, rngs: nnx.Rngs):
        self.gate = linear(width, hidden, bias=bias, dtype=dtype, rngs=rngs)
        self.up = linear(width, hidden, bias=bias, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def stack(depth: int, make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> nnx.Module:
    """One module whose parameters carry a leading axis of `depth` layers, each drawn on its own."""
    build = nnx.split_rngs(splits=depth)(nnx.vmap(make, in_axes=0, out_axes=0))
    return build(rngs)


def scan(layers: nnx.Module, body: Callable, carry, xs, *, remat: bool = False):
    """Folds `carry` through layers: `carry, y = body(layer, carry, x)`; xs and ys are by layer.

    Of stacked layers one is traced and compiled, whatever the depth; xs and ys are stacked as well.
    With `remat` a layer's activations are recomputed in the backward pass instead of kept. A list
    of layers (see `unstacked`) is unrolled, without `remat`; xs is a list too, and so are ys.
    """
    if isinstance(layers, nnx.List):
        ys = []
        for layer, x in zip(layers, xs, strict=True):
            carry, y = body(layer, carry, x)
            ys.append(y)
        return carry, ys
    graph, params = nnx.split(layers)

    def step(carry, inputs):
        state, x = inputs
        return body(nnx.merge(graph, state), carry, x)

    return jax.lax.scan(jax.checkpoint(step) if remat else step, carry, (params, xs))


def unstacked(layers: nnx.Module, depth: int) -> nnx.Module:
    """Stacked layers as a list.

    For loops of many short steps: a scan would copy each layer's parameters out of the stack at
    every step, and they are what such a step's time goes into; here that is done once. And for
    updates of a few small layers, where a scan would write every gradient into a stack of zeros.
    """
    graph, params = nnx.split(layers)
    return nnx.List(
        [nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], params)) for i in range(depth)]
    )
