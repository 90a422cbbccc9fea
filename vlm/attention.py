"""Attention of rows that share a prefix: one softmax over (shared prefix) + (own slots).

`attend` is the only door. Behind it stand XLA, which does everything, and two flash kernels for
long sequences without a prefix: cuDNN's on NVIDIA GPUs and Pallas' splash attention on TPUs.
Neither takes part where a prefix is shared: two parts merge by their log-sum-exps, and those come
rounded to the parameter dtype (cuDNN) and without a gradient (both).
"""

from __future__ import annotations

import functools
import logging
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int

from vlm.layers import factors

BACKENDS = ("auto", "xla", "cudnn", "splash")
SCORE_BYTES = 2**28
"""Largest float32 score matrix that XLA forms at once; a longer chunk runs in blocks of queries."""
_LEAST = 128  # queries a block, whatever the budget: with fewer, a matrix unit idles
_LONG = 256  # queries from which "auto" takes a flash kernel; below, the scores are small
_TILE, _LANES = 512, 128  # splash: largest block, and what a block is a multiple of
_MASKED = -1e30  # finite, so that a row with nothing to see gives numbers and not NaN

Prefix = tuple[
    Float[Array, "B kv_heads P head_dim"],
    Float[Array, "B kv_heads P head_dim"],
    Bool[Array, "B P"],
]


def attend(
    q: Float[Array, "B N T heads head_dim"],
    k: Float[Array, "B N kv_heads S head_dim"],
    v: Float[Array, "B N kv_heads S head_dim"],
    valid: Bool[Array, "B N S"],
    prefix: Prefix | None = None,
    *,
    start: Int[Array, ""] | int | None = None,
    backend: str = "auto",
) -> Float[Array, "B N T heads head_dim"]:
    """Grouped-query attention of N rows a prompt, each to its own slots and to one shared prefix.

    The prefix is read once for all N rows and never copied: its scores and the rows' own are under
    a single softmax, so the result equals attention over the concatenated keys. Memory is linear in
    T and S, forward and backward, on every back end.

    Args:
      q: queries; `heads` is a multiple of `kv_heads`.
      k, v: the rows' own keys and values; heads come first, as a cache that is read at every step
        must not be transposed at every step.
      valid: which own slots hold a token; no query sees the others.
      prefix: keys, values and validity of the shared prefix; every query sees its valid slots.
      start: slot of the first query: query t sees slots up to start + t. None: all slots.
      backend: one of `BACKENDS`. `auto` picks by platform and shape; one that is named gives way
        to `xla`, with a warning, where `obstacle` finds a reason. On a flash kernel, what comes out
        at a query that is itself not valid has no meaning.
    """
    chosen = _choose(backend, q, k, start, prefix)
    if chosen == "cudnn":
        return _cudnn(q, k, v, valid, causal=start is not None)
    if chosen == "splash":
        return _splash(q, k, v, valid, causal=start is not None)
    slots = k.shape[3] + (0 if prefix is None else prefix[0].shape[2])
    size = _block(q.shape, slots)
    if size < q.shape[2]:
        return _blocked(q, k, v, valid, prefix, start, size)
    return _joint(q, k, v, valid, prefix, start)


def attend_within(
    q: Float[Array, "F S heads head_dim"],
    k: Float[Array, "F S heads head_dim"],
    v: Float[Array, "F S heads head_dim"],
    valid: Bool[Array, "F S"],
    *,
    run: int,
    backend: str = "auto",
) -> Float[Array, "F S heads head_dim"]:
    """Attention among the valid patches of each run of `run` consecutive ones, which divides S."""
    q_run, k_run, v_run = (part.reshape(-1, 1, run, *part.shape[2:]) for part in (q, k, v))
    k_run, v_run = (jnp.swapaxes(part, 2, 3) for part in (k_run, v_run))
    mixed = attend(q_run, k_run, v_run, valid.reshape(-1, 1, run), backend=backend)
    return mixed.reshape(q.shape)


def unusable(backend: str, platform: str | None = None) -> str:
    """Why `backend` cannot work on a platform at all, with what to choose; empty where it can.

    Args:
      platform: `cpu`, `cuda`, `rocm` or `tpu`; None: the one that this process computes on.
    """
    if backend not in BACKENDS:
        return f"attention is {backend!r}; choices: {', '.join(map(repr, BACKENDS))}"
    platform = _device()[0] if platform is None else platform
    needed = {"cudnn": "cuda", "splash": "tpu"}.get(backend, platform)
    if platform == needed:
        return ""
    return f"attention {backend!r} runs on {needed} and this is {platform}; choose 'auto' or 'xla'"


def obstacle(
    backend: str,
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    dtype,
    *,
    start: Int[Array, ""] | int | None = None,
    prefix: bool = False,
    capability: tuple[int, int] | None = None,
) -> str:
    """Which constraint keeps a back end from an attention of these shapes; empty where none does.

    Args:
      q_shape, k_shape: [B, N, T, heads, head_dim] and [B, N, kv_heads, S, head_dim].
      start, prefix: as `attend` has them; of the prefix, whether there is one.
      capability: of the GPU, (9, 0) for Hopper; None where it is not known.
    """
    if backend in ("auto", "xla"):
        return ""
    head_dim, dtype = q_shape[4], jnp.dtype(dtype)
    if prefix:
        return "rows that share a prefix need log-sum-exps with gradients"
    if q_shape[2] != k_shape[3] or not (start is None or (isinstance(start, int) and start == 0)):
        return "queries are a part of the sequence, and the kernel takes whole ones"
    if backend == "splash":
        supported = dtype in (jnp.bfloat16, jnp.float32)
        return "" if supported else f"dtype is {dtype}; supported: bfloat16, float32"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"dtype is {dtype}; supported: bfloat16, float16"
    if capability is not None and capability < (8, 0):
        return f"compute capability is {capability[0]}.{capability[1]}; needed: 8.0 or later"
    widest = 256 if capability is not None and capability >= (9, 0) else 128
    if head_dim % 8 or head_dim > widest:
        return f"head_dim is {head_dim}; supported: multiples of 8 up to {widest}"
    return ""


def _choose(backend: str, q: Array, k: Array, start, prefix) -> str:
    """The back end for a shape, at trace time; a named one is trusted to suit the platform."""
    shown = (q.shape, k.shape, q.dtype)
    known = {"start": start, "prefix": prefix is not None}
    if backend == "auto":
        platform, capability = _device()
        flash = {"cuda": "cudnn", "tpu": "splash"}.get(platform, "xla")
        if q.shape[2] < _LONG or flash == "xla" or _partitioned(flash, q):
            return "xla"
        return "xla" if obstacle(flash, *shown, **known, capability=capability) else flash
    if backend in ("cudnn", "splash"):
        reason = obstacle(backend, *shown, **known, capability=_device()[1])
        if reason:
            _warn(backend, reason)
            return "xla"
    return backend


@functools.cache
def _warn(backend: str, reason: str) -> None:
    """Once for each constraint, however many layers and shapes it meets."""
    logging.getLogger(__name__).warning(
        "attention: 'xla' in place of %r where it cannot be used: %s", backend, reason
    )


def _device() -> tuple[str, tuple[int, int] | None]:
    """Platform that arrays go to by default and, of an NVIDIA GPU, its compute capability."""
    device = jax.config.jax_default_device
    if isinstance(device, str):
        device = jax.devices(device)[0]
    device = jax.local_devices()[0] if device is None else device
    if device.platform != "gpu":
        return device.platform, None
    if "rocm" in device.client.platform_version:
        return "rocm", None
    major, minor = device.compute_capability.split(".")
    return "cuda", (int(major), int(minor))


def _partitioned(backend: str, q: Array) -> bool:
    """Whether XLA would have to split a kernel over devices that it cannot split.

    Under `shard_map` and `pmap` there is nothing left to split. Elsewhere XLA never splits a Pallas
    kernel, and where several devices come without a mesh in sight that is taken to be asked for.
    cuDNN's call says how it is split, but takes no part in explicit shardings.
    """
    mesh = jax.typeof(q).sharding.mesh
    open_axes = {
        kind
        for kind, size in zip(mesh.axis_types, mesh.axis_sizes, strict=True)
        if size > 1 and kind != AxisType.Manual
    }
    if backend == "cudnn":
        return AxisType.Explicit in open_axes
    return bool(open_axes) or (mesh.empty and jax.device_count() > 1)


def _joint(q, k, v, valid, prefix, start):
    """One softmax over own slots and prefix, whose parts share its maximum and its sum.

    The scores of a part stay where its matrix product has written them, for the prefix with the
    rows behind the heads: joining the parts would move every score, and its gradient, several
    times.
    """
    batch, rows, length, _, head_dim = q.shape
    scaled = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)  # rounded once
    grouped = jnp.moveaxis(scaled.reshape(batch, rows, length, k.shape[2], -1, head_dim), 2, 4)
    seen = valid[:, :, None]
    if start is not None:
        causal = jnp.arange(k.shape[3])[None, :] <= start + jnp.arange(length)[:, None]
        seen = seen & causal[None, None]

    scores = _dot("bnkgth,bnksh->bnkgts", grouped, k)
    scores = jnp.where(seen[:, :, None, None], scores, _MASKED)
    top = jnp.max(scores, axis=-1)
    if prefix is not None:
        prefix_k, prefix_v, prefix_valid = prefix
        shared = _dot("bkngth,bkph->bkngtp", jnp.swapaxes(grouped, 1, 2), prefix_k)
        shared = jnp.where(prefix_valid[:, None, None, None, None], shared, _MASKED)
        top = jnp.maximum(top, jnp.swapaxes(jnp.max(shared, axis=-1), 1, 2))
    top = jax.lax.stop_gradient(top)  # cancels out

    weights = jnp.exp(scores - top[..., None])
    total = jnp.sum(weights, axis=-1)
    mixed = _dot("bnkgts,bnksh->bnkgth", weights.astype(v.dtype), v)
    if prefix is not None:
        top = jnp.swapaxes(top, 1, 2)
        weights = jnp.exp(shared - top[..., None])
        total += jnp.swapaxes(jnp.sum(weights, axis=-1), 1, 2)
        more = _dot("bkngtp,bkph->bkngth", weights.astype(v.dtype), prefix_v)
        mixed += jnp.swapaxes(more, 1, 2)
    mixed = jnp.moveaxis(mixed / total[..., None], 4, 2)
    return mixed.astype(q.dtype).reshape(q.shape)


def _dot(spec: str, a: Array, b: Array) -> Array:
    return _product(spec, *factors(a, b))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(spec: str, a: Array, b: Array) -> Array:
    """In float32; what comes back meets the factors in their own dtype."""
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _kept(spec, a, b):
    return _product(spec, a, b), (a, b)


def _gradients(spec, kept, g):
    return jax.vjp(functools.partial(jnp.einsum, spec), *kept)[1](g.astype(kept[0].dtype))


_product.defvjp(_kept, _gradients)


def _block(q_shape: tuple[int, ...], slots: int) -> int:
    """Queries to run at once, so that their scores over all slots keep within `SCORE_BYTES`."""
    batch, rows, length, heads, _ = q_shape
    most = max(_LEAST, SCORE_BYTES // (4 * batch * rows * heads * slots))
    even = math.ceil(length / math.ceil(length / most))
    return min(length, 8 * math.ceil(even / 8))


def _blocked(q, k, v, valid, prefix, start, size: int):
    """`_joint` over blocks of `size` queries, one after the other, also in the backward pass."""
    batch, rows, length, *width = q.shape
    count = math.ceil(length / size)
    padded = jnp.pad(q, [(0, 0), (0, 0), (0, count * size - length), (0, 0), (0, 0)])
    blocks = jnp.moveaxis(padded.reshape(batch, rows, count, size, *width), 2, 0)
    # Their gradients add up over the blocks: in float32, and so do the values go in.
    wide = jax.tree.map(_widened, (k, v, prefix))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run(wide, block, number):
        k, v, prefix = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(q.dtype), wide)
        first = None if start is None else start + number * size
        return _joint(block, k, v, valid, prefix, first)

    out = jax.lax.map(lambda x: run(wide, *x), (blocks, jnp.arange(count)))
    return jnp.moveaxis(out, 0, 2).reshape(batch, rows, count * size, *width)[:, :, :length]


def _widened(x: Array) -> Array:
    return x if x.dtype == bool else x.astype(jnp.float32)


def _cudnn(q, k, v, valid, *, causal: bool, implementation: str = "cudnn"):
    """cuDNN's flash attention, which knows causal order and lengths but no holes.

    Valid tokens are therefore moved to the front, in their order: among them causal order stays
    what it was, and behind them is nothing that they see. No row is ever without a key.
    """
    shape, k, v = q.shape, jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3)
    q, k, v, valid = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v, valid))
    order = jnp.argsort(~valid, axis=1, stable=True)
    flash = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    if causal:
        q, k, v = (_permuted(x, order) for x in (q, k, v))
        out = _permuted(flash(q, k, v, is_causal=True), jnp.argsort(order, axis=1))
    else:
        lengths = jnp.maximum(jnp.sum(valid, axis=1, dtype=jnp.int32), 1)
        out = flash(q, _permuted(k, order), _permuted(v, order), key_value_seq_lengths=lengths)
    return out.reshape(shape)


def _permuted(x: Array, order: Array) -> Array:
    rows = jnp.arange(x.shape[0])[:, None]
    return x.at[rows, order].get(unique_indices=True, mode="promise_in_bounds")


def _splash(q, k, v, valid, *, causal: bool, interpret: bool = False):
    """Pallas' splash attention; valid tokens are one segment, all others another.

    A token sees at least itself, so that no row is without a key. The kernel does not scale:
    queries are, in float32, and rounded once.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape, (length, heads, head_dim) = q.shape, q.shape[2:]
    count = math.ceil(length / _TILE)
    size = _LANES * math.ceil(length / count / _LANES)
    padded = count * size
    q = jnp.swapaxes(q.astype(jnp.float32) * head_dim**-0.5, 2, 3).astype(q.dtype)
    rest = (0, padded - length)
    q, k, v = (
        jnp.pad(x.reshape(-1, *x.shape[2:]), [(0, 0), (0, 0), rest, (0, 0)]) for x in (q, k, v)
    )
    valid = jnp.pad(valid.reshape(-1, length), [(0, 0), rest])
    mask = masks.CausalMask((padded, padded)) if causal else masks.FullMask((padded, padded))
    blocks = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**{f"block_{name}": size for name in blocks}),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def one(q, k, v, valid):
        segment = valid.astype(jnp.int32)
        return kernel(q, k, v, segment_ids=kernels.SegmentIds(segment, segment))

    out = jnp.swapaxes(jax.vmap(one)(q, k, v, valid), 1, 2)
    return out[:, :length].reshape(shape)
