"""Supervised training on the toy world: the losses of `experiments.lessons`, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from data.toytasks import KINDS
from experiments.lessons import LABELS, Cells, Lessons
from vlm.logprobs import token_logprobs
from vlm.model import Model, encode, run


class Pupil(nnx.Module):
    """The model, and a linear classifier of cells, for dense labels, that its export is without."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        self.model = model
        self.head = nnx.Linear(model.config.vision.out, sum(LABELS.values()), rngs=rngs)


def with_decoder(model: Model, other: Model) -> Model:
    """The model with the embeddings and the decoder of `other`, as far as both have them.

    Between the families biases are left out and norms of queries and keys stay as they are; of what
    the bundled model has learned of text, most is still known. Raises ValueError where shapes
    differ.
    """
    graph, state = nnx.split(model)
    known = dict(nnx.to_flat_state(nnx.state(other)))
    taken = {}
    for path, leaf in nnx.to_flat_state(state):
        if path[0] != "vision" and path in known:
            if known[path].shape != leaf.shape:
                raise ValueError(
                    f"--config.decoder: its {'.'.join(path)} is {known[path].shape}, and that of "
                    f"the model {leaf.shape}; choose one of the same size"
                )
            leaf = leaf.replace(jax.device_put(known[path][...], leaf[...].sharding))
        taken[path] = leaf
    return nnx.merge(graph, nnx.from_flat_state(taken))


Parts = dict[str, Float[Array, ""]]


def loss(
    pupil: Pupil,
    batch: Cells | Lessons,
    shares: dict[str, float],
    *,
    unroll: bool = False,
    remat: bool = False,
) -> tuple[Float[Array, ""], Parts]:
    """The loss of a batch and its parts.

    `shares` weighs the kinds of answers and, in lessons, cells; `unroll` puts layers in line,
    unless `remat` recomputes the activations of each in the backward pass.
    """
    model = pupil.model.unstacked() if unroll and not remat else pupil.model
    if isinstance(batch, Cells):
        return cells_loss(pupil.head, encode(model, batch.frames, remat=remat), batch)
    return lessons_loss(model, pupil.head, batch, shares, remat=remat)


def cells_loss(
    head: nnx.Linear, features: Float[Array, "rows features"], cells: Cells
) -> tuple[Float[Array, ""], Parts]:
    """Cross-entropy of every cell's labels, nats; cells in which something is weigh one half.

    Parts: the share of those cells whose label is right.
    """
    features = features[:, : head.in_features]
    # Read as the decoder's first norm will read them: where a head sees their size, they grow, and
    # what the decoder's layers add to them is lost beside it.
    features = jax.nn.standardize(features, mean=0.0, epsilon=1e-6)
    scores = head(features).astype(jnp.float32)
    scores = jnp.split(scores, np.cumsum([*LABELS.values()])[:-1], axis=-1)
    total, parts = jnp.zeros(()), {}
    for i, (name, z) in enumerate(zip(LABELS, scores, strict=True)):
        nll, parts[f"cells/{name}"] = _classified(z, cells.labels[:, i])
        total += nll
    return total, parts


def _classified(
    scores: Float[Array, "cells classes"], labels: Int[Array, " cells"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of labels, -1 for none, and the share that is right of those above 0.

    The cells above 0 weigh one half together, those of 0 the other.
    """
    there, nothing = (mask.astype(jnp.float32) for mask in (labels > 0, labels == 0))
    weight = there / jnp.maximum(there.sum(), 1) + nothing / jnp.maximum(nothing.sum(), 1)
    logp = jax.nn.log_softmax(scores)
    nll = -jnp.take_along_axis(logp, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    right = jnp.mean(jnp.argmax(scores, -1) == labels, where=labels > 0)
    return jnp.sum(weight * nll) / 2, right


def lessons_loss(
    model: Model, head: nnx.Linear, batch: Lessons, shares: dict[str, float], *, remat: bool = False
) -> tuple[Float[Array, ""], Parts]:
    """Cross-entropy of the answers, of each kind in nats a token, and of cells; weighted, summed.

    Parts: KIND/nll, and KIND/sure, the share of tokens given a probability above 1/2; those of
    `cells_loss`; nan for what the batch does not ask.
    """
    features = encode(model, batch.cells.frames, remat=remat)
    dense, parts = cells_loss(head, features, batch.cells)
    _, cache = run(model, batch.window, features, remat=remat)
    groups = [(asked, cache) for asked in batch.before]
    if batch.observation is not None:
        _, more = run(model, batch.observation, features, prefix=cache, remat=remat)
        both = cache.append(more)
        groups += [(asked, both) for asked in batch.after]
    groups += [(asked, None) for asked in batch.drills]
    sums = jnp.zeros((3, len(KINDS)))  # of NLL, of what is sure, and of weights
    for asked, prefix in groups:
        hidden, _ = run(model, asked.tokens, prefix=prefix, remat=remat)
        states = jnp.take_along_axis(hidden, asked.places[..., None], axis=2)
        logp = token_logprobs(model, states, asked.targets)
        sure = (logp > np.log(0.5)).astype(logp.dtype)
        values = jnp.stack([-logp, sure, jnp.ones_like(logp)])
        rows = jnp.sum(asked.weights[None] * values, axis=-1).reshape(3, -1)
        sums += jax.ops.segment_sum(rows.T, asked.kinds.reshape(-1), len(KINDS)).T
    asked = sums[2] > 0
    for i, kind in enumerate(KINDS):
        parts |= {
            f"{kind}/{name}": jnp.where(asked[i], sums[j, i], jnp.nan)
            for j, name in enumerate(("nll", "sure"))
        }
    total = jnp.sum(jnp.array([shares[kind] for kind in KINDS]) * sums[0])
    return total + shares["cells"] * dense, parts
