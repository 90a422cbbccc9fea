"""The least that scoring can cost: FLOPs and bytes counted from a configuration, and what the
machine does of either in a second, measured.

Counted is what no implementation can leave out: each temporal patch through the tower once, each
prefix through the decoder once, every new token once, the head where a token is drawn or scored.
A product of [m, k] and [k, n] counts 2 m k n; norms, rotations, softmax and sampling count nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from vlm.config import Qwen25Vision, VisionConfig, VLMConfig

PHASES = ("encode", "prefill", "sample", "prior", "observe", "posterior", "caption")


@dataclass(frozen=True)
class Cost:
    """FLOPs, and bytes that have to come from memory."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Work:
    """What is done for the videos in flight; counts are tokens unless they say otherwise."""

    grid: tuple[int, int]
    """A frame's height and width in patches."""
    patches: int
    """Distinct temporal patches that a video shows."""
    prompts: tuple[tuple[int, ...], ...]
    """By step and video: system, history and window."""
    observed: int
    """What the observation adds."""
    predict: int
    """The question that hypotheses answer, with the header of the answer; likewise the next two."""
    statement: int
    caption: int
    hypotheses: int
    """N."""
    hypothesis_tokens: int
    """L, sampled and scored."""
    caption_tokens: int
    value_bytes: int = 4

    @property
    def sampled(self) -> int:
        """Tokens drawn in all."""
        each = self.hypotheses * self.hypothesis_tokens + self.caption_tokens
        return sum(map(len, self.prompts)) * each

    @property
    def scored(self) -> int:
        """Tokens of hypotheses scored in all, before and after the observation."""
        return sum(map(len, self.prompts)) * 2 * self.hypotheses * self.hypothesis_tokens


def floor(config: VLMConfig, work: Work) -> dict[str, Cost]:
    """FLOPs and bytes of each of PHASES, all steps and videos together.

    encode     temporal patches x tower, its weights once
    prefill    decode(prompt, 0)
    sample     decode(predict, prompt) + N decode(L - 1, ..) + (1 + N (L - 1)) head: the first
               token of all N is drawn from one state, and nothing follows the last
    prior      decode(statement, prompt) + N decode(L - 1, ..) + (1 + N (L - 1)) head
    observe    decode(observed, prompt)
    posterior  the prior's, behind prompt + observed
    caption    the sample's with N = 1

    with decode(T, S) of T new tokens behind S as in `decode_flops`, head = 2 D V. A pass reads all
    weights once for the whole batch, and each prefix's keys and values once for all N: one pass for
    the chunks, one a token where tokens are drawn.
    """
    text, b = config.text, work.value_bytes
    weights, head = layer_weights(config) * text.layers * b, text.hidden * text.vocab * b
    slot = 2 * text.layers * text.kv_heads * text.head_dim * b
    patches = work.patches * (len(work.prompts[0]) if work.prompts else 0)
    costs = dict.fromkeys(PHASES, Cost())
    vision = config.vision
    pixels = work.grid[0] * work.grid[1] * vision.patch_features
    costs["encode"] = Cost(
        patches * tower_flops(vision, work.grid),
        (tower_weights(vision) + patches * pixels) * b,
    )

    def chunk(tokens: int, seen: list[int]) -> Cost:
        return Cost(
            sum(decode_flops(config, tokens, each) for each in seen),
            weights + sum(each + tokens for each in seen) * slot,
        )

    def heads(rows: int, passes: int) -> Cost:
        return Cost(2 * rows * text.hidden * text.vocab, passes * head)

    def drawn(question: int, seen: list[int], rows: int, tokens: int) -> Cost:
        behind = [each + question for each in seen]
        flops = sum(rows * decode_flops(config, tokens - 1, each) for each in behind)
        # Pass t of tokens - 1 reads the prefixes, and t own slots of every row.
        read = (tokens - 1) * sum(behind) + len(seen) * rows * tokens * (tokens - 1) / 2
        own = Cost(flops, (tokens - 1) * weights + read * slot)
        return chunk(question, seen) + own + heads(len(seen) * (1 + rows * (tokens - 1)), tokens)

    def scored(seen: list[int]) -> Cost:
        rows, tokens = work.hypotheses, work.hypothesis_tokens
        behind = [each + work.statement for each in seen]
        flops = sum(rows * decode_flops(config, tokens - 1, each) for each in behind)
        own = Cost(flops, len(seen) * rows * (tokens - 1) * slot)
        return chunk(work.statement, seen) + own + heads(len(seen) * (1 + rows * (tokens - 1)), 1)

    for prompts in work.prompts:
        before = list(prompts)
        after = [each + work.observed for each in before]
        costs["prefill"] += Cost(
            sum(decode_flops(config, each, 0) for each in before), weights + sum(before) * slot
        )
        costs["sample"] += drawn(work.predict, before, work.hypotheses, work.hypothesis_tokens)
        costs["prior"] += scored(before)
        costs["observe"] += chunk(work.observed, before)
        costs["posterior"] += scored(after)
        costs["caption"] += drawn(work.caption, after, 1, work.caption_tokens)
    return costs


def layer_weights(config: VLMConfig) -> int:
    """Values in the products of a decoder layer: q, k, v, o and the three of SwiGLU."""
    text = config.text
    q, kv = text.heads * text.head_dim, text.kv_heads * text.head_dim
    return text.hidden * (2 * q + 2 * kv) + 3 * text.hidden * text.mlp


def decode_flops(config: VLMConfig, tokens: int, seen: int) -> float:
    """FLOPs of T tokens behind S others, without the head.

    layers x (2 T weights + 4 heads head_dim (T S + T (T + 1) / 2)): scores and mixed values over
    the slots before a token, and itself.
    """
    text = config.text
    pairs = tokens * seen + tokens * (tokens + 1) / 2
    attention = 4 * text.heads * text.head_dim * pairs
    return text.layers * (2 * tokens * layer_weights(config) + attention)


def tower_flops(vision: VisionConfig, grid: tuple[int, int]) -> float:
    """FLOPs of a frame of P = h x w patches of width D through the tower.

    2 P features D for the patches; a block 2 P weights + 4 D (pairs of patches that see each
    other); a merger 2 (P / merge^2) ((merge^2 D)^2 + merge^2 D out), one more a deepstack tap.
    """
    count = grid[0] * grid[1]
    joined = vision.hidden * vision.merge**2
    whole, windowed = count**2, sum(size**2 for size in _windows(vision, grid))
    full = set(range(vision.depth))
    if isinstance(vision, Qwen25Vision):
        full &= set(vision.full_layers)
    pairs = len(full) * whole + (vision.depth - len(full)) * windowed
    return (
        2 * count * vision.patch_features * vision.hidden
        + vision.depth * 2 * count * block_weights(vision)
        + 4 * vision.hidden * pairs
        + (1 + len(vision.taps)) * 2 * (count // vision.merge**2) * joined * (joined + vision.out)
    )


def tower_weights(vision: VisionConfig) -> int:
    """Values in the products of the whole tower."""
    joined = vision.hidden * vision.merge**2
    mergers = (1 + len(vision.taps)) * joined * (joined + vision.out)
    return vision.patch_features * vision.hidden + vision.depth * block_weights(vision) + mergers


def block_weights(vision: VisionConfig) -> int:
    """Values in the products of a block: qkv, proj, and an MLP that Qwen2.5-VL gates."""
    products = 3 if isinstance(vision, Qwen25Vision) else 2
    return 4 * vision.hidden**2 + products * vision.hidden * vision.mlp


def _windows(vision: VisionConfig, grid: tuple[int, int]) -> list[int]:
    """Patches in each attention window; those at the right and lower edge may be smaller."""
    side = vision.window_cells * vision.merge
    heights, widths = (
        [min(side, length - start) for start in range(0, length, side)] for length in grid
    )
    return [height * width for height in heights for width in widths]


# What the machine does in a second -----------------------------------------------------------

SHAPES = ((2048, 512, 1408), (2048, 1408, 512), (1024, 1024, 1024), (2048, 2048, 2048))
"""m, k, n of the products that are timed."""
STREAM_BYTES = 2**28


def matmul_rate(dtype: str) -> float:
    """FLOPs a second of the fastest of SHAPES."""
    import jax
    import jax.numpy as jnp

    multiply = jax.jit(lambda a, b: a @ b)
    scale = 1 if jax.default_backend() == "cpu" else 8  # a GPU needs more to be busy with
    best = 0.0
    for m, k, n in SHAPES:
        m, k, n = scale * m, scale * k, scale * n
        a, b = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
        best = max(best, 2 * m * k * n / _least(lambda a=a, b=b: multiply(a, b)))
    return best


def bandwidth(dtype: str) -> float:
    """Bytes a second, the better of summing an array and multiplying a vector by it."""
    import jax
    import jax.numpy as jnp

    scale = 1 if jax.default_backend() == "cpu" else 8
    width = 4096
    array = jnp.ones((scale * STREAM_BYTES // width // jnp.dtype(dtype).itemsize, width), dtype)
    vector = jnp.ones(width, dtype)
    add, multiply = jax.jit(jnp.sum), jax.jit(lambda a, x: a @ x)
    seconds = min(_least(lambda: add(array)), _least(lambda: multiply(array, vector)))
    return array.nbytes / seconds


def _least(call: Callable, repeats: int = 7) -> float:
    """The least seconds of several calls, the first of which compiles."""
    import jax

    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
