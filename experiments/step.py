"""One update of a model's parameters: gradient, clipping, optimizer; a pure function, jitted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int
from optax.contrib import MuonDimensionNumbers, muon

from experiments.assembly import OFF, Assembly, assemble
from experiments.mesh import own_mesh, replicas, shardings, spread, spread_parts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that an update changes."""

    step: Int[np.ndarray | Array, ""]
    params: nnx.State
    """What is trained (`experiments.assembly`), float32."""
    optimizer: Any
    average: nnx.State | None = None
    """Of the parameters over the updates so far, where one is kept."""

    @property
    def result(self) -> nnx.State:
        """The parameters that are evaluated and exported."""
        return self.params if self.average is None else self.average


def optimizer(config: dict[str, Any], steps: int) -> optax.GradientTransformation:
    """Muon for matrices, AdamW for the rest (Jordan et al. 2024), after clipping by global norm.

    `config`: learning_rate (AdamW), muon_learning_rate (0: AdamW for all), ramp_steps,
    decay_share, weight_decay, clip, and warmup_steps where there are any: the first of `steps`,
    which train a part of the model. The rate rises over `ramp_steps`, stays, and falls in a line to
    zero over the last `decay_share` of the steps after the warm-up, behind which it rises anew.
    Muon's updates are scaled to the root mean square of Adam's (Liu et al. 2025, arXiv 2502.16982,
    eq. 4).
    """
    ramp, warmup = config["ramp_steps"], config.get("warmup_steps", 0)
    begins = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, ramp), optax.constant_schedule(1.0)], [ramp]
    )
    rises = optax.join_schedules([begins, begins], [warmup])
    decay = int((steps - warmup) * config["decay_share"])
    falls = optax.linear_schedule(1.0, 0.0, decay, steps - decay)
    adam = {"weight_decay": config["weight_decay"], "b2": 0.99}
    if config["muon_learning_rate"]:
        rule = muon(
            config["muon_learning_rate"],
            adam_b2=adam["b2"],
            adam_weight_decay=adam["weight_decay"],
            adam_learning_rate=config["learning_rate"],
            weight_decay=config["weight_decay"],
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        rule = optax.adamw(config["learning_rate"], **adam)
    rule = optax.chain(optax.clip_by_global_norm(config["clip"]), rule)
    return optax.chain(
        _restarted(rule, warmup) if warmup else rule,
        optax.scale_by_schedule(lambda count: rises(count) * falls(count)),
    )


class _Restarted(NamedTuple):
    count: Int[Array, ""]
    since: optax.OptState


def _restarted(rule: optax.GradientTransformation, after: int) -> optax.GradientTransformation:
    """The rule, whose state begins anew after so many updates.

    Parameters whose gradient was zero until then have no moments, and the count that corrects
    moments for beginning at zero has run out: their first steps would be too long by far.
    """

    def init(params: Any) -> _Restarted:
        return _Restarted(jnp.zeros((), jnp.int32), rule.init(params))

    def update(gradient: Any, state: _Restarted, params: Any) -> tuple[Any, _Restarted]:
        since = jax.lax.cond(state.count == after, lambda: rule.init(params), lambda: state.since)
        changes, since = rule.update(gradient, since, params)
        return changes, _Restarted(state.count + 1, since)

    return optax.GradientTransformation(init, update)


def _matrices(params: Any) -> Any:
    """Which axes of each parameter Muon takes for a matrix; None: not one. A stack has several."""

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        if "kernel" not in name or leaf.ndim < 2:
            return None
        return MuonDimensionNumbers(reduction_axis=leaf.ndim - 2, output_axis=leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(one, params)


def start(
    module: nnx.Module,
    rule: optax.GradientTransformation,
    config: dict[str, Any] = OFF,
    mesh: Mesh | None = None,
) -> tuple[Assembly, TrainState]:
    """How the module is made of what is trained, and the state before the first update.

    `config`: freeze_tower, lora_rank and lora_alpha, compute_dtype, ema_decay.
    """
    assembly, params = assemble(module, config, mesh)

    def begin(params: nnx.State) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            optimizer=rule.init(params),
            average=jax.tree.map(jnp.copy, params) if config["ema_decay"] else None,
        )

    if mesh is None:
        return assembly, begin(params)
    places = shardings(jax.eval_shape(begin, params), mesh)
    return assembly, jax.jit(begin, out_shardings=places)(params)


def cast(module: nnx.Module, dtype: str) -> nnx.Module:
    """A copy with its parameters in another dtype."""
    graph, params = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(dtype), params))


def updater(
    assembly: Assembly,
    rule: optax.GradientTransformation,
    loss: Callable,
    parts: int = 1,
    decay: float = 0.0,
    spread: Callable[[Any, Mesh], Any] = spread,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]:
    """The jitted update of a state by a batch; `loss(module, batch)` gives loss and metrics.

    A step whose gradient is not finite changes nothing but the count, and `skipped` says so. The
    old state's memory is reused. On a mesh, state and batch are spread over it, and the numbers are
    those of one device.

    parts: micro-batches, into which a batch is cut along the first axis of its arrays, so that the
    activations of one exist at a time. Their losses and metrics must add up to the batch's; of a
    metric whose name ends in /max the largest counts.
    decay: of the state's average, if it has one: average <- decay · average + (1 - decay) · params.
    spread: puts a batch on the mesh; `experiments.mesh` has one for batches and one for shares.
    """
    mesh = assembly.mesh

    def moved(state: TrainState, gradient: Any) -> TrainState:
        changes, memory = rule.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, changes)
        average = jax.tree.map(
            lambda mean, new: decay * mean + (1 - decay) * new,
            state.average,
            None if state.average is None else params,
        )
        return replace(state, params=params, optimizer=memory, average=average)

    def update(state: TrainState, frozen: Any, batch: Any):
        def of(params, part):
            return loss(assembly.module(params, frozen), part)

        learn = jax.value_and_grad(of, has_aux=True)
        if parts == 1:
            (value, metrics), gradient = learn(state.params, batch)
        else:
            (value, metrics), gradient = _added(learn, state.params, batch, parts, mesh)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm)
        # A condition, and no selection between states: that would need the old one in whole.
        state = jax.lax.cond(finite, moved, lambda state, _: state, state, gradient)
        state = replace(state, step=state.step + 1)
        if mesh is not None:
            state = jax.lax.with_sharding_constraint(state, shardings(state, mesh))
        skipped = jnp.where(finite, 0.0, 1.0)
        return state, metrics | {"loss": value, "grad_norm": norm, "skipped": skipped}

    jitted = jax.jit(update, donate_argnums=0)

    def run(state: TrainState, batch: Any):
        return jitted(state, assembly.frozen, batch if mesh is None else spread(batch, mesh))

    return run


def _added(learn: Callable, params: Any, batch: Any, parts: int, mesh: Mesh | None):
    """Loss, metrics and gradient of a batch, a micro-batch at a time."""
    leaves, structure = jax.tree.flatten(batch)
    cut = [leaf.reshape(parts, -1, *leaf.shape[1:]) for leaf in leaves]
    if mesh is not None:
        cut = spread_parts(cut, mesh)

    def one(total, part):
        out, gradient = learn(params, structure.unflatten(part))
        return jax.tree.map(jnp.add, total, gradient), out

    gradient, (values, metrics) = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, params), cut)
    metrics = {
        name: jnp.max(each) if name.endswith("/max") else jnp.sum(each)
        for name, each in metrics.items()
    }
    return (jnp.sum(values), metrics), gradient


def memory(
    assembly: Assembly, state: TrainState, loss: Callable, batch: Any, parts: int = 1
) -> int:
    """Bytes that an update holds on a device, found without compiling it.

    What is frozen, the state, its gradient and its successor's (where memory can't be reused, as in
    the midst of an update), and what a micro-batch's forward pass keeps for the backward one.
    """

    def kept(params, frozen, part):
        return jax.vjp(lambda params: loss(assembly.module(params, frozen), part)[0], params)[1]

    part = jax.tree.map(lambda leaf: leaf[: len(leaf) // parts], batch)
    saved = jax.eval_shape(kept, state.params, assembly.frozen, part)
    devices = replicas(own_mesh(assembly.mesh))
    own = _bytes(assembly.frozen) + _bytes(state) + 2 * _bytes(state.params)
    return own + _bytes(saved) // devices


def _bytes(tree: Any) -> int:
    """Of arrays, those on one device."""

    def one(leaf) -> int:
        spread_out = isinstance(leaf, jax.Array)
        shape = leaf.sharding.shard_shape(leaf.shape) if spread_out else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))
