"""Orbax checkpoints of a model: parameters, and beside them the files that describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from vlm import VLM
from vlm.loading import describe, described
from vlm.weights import abstract_model

PARAMS = "params"


def is_checkpoint(directory: Path) -> bool:
    """Whether `save` has written this directory."""
    return (directory / PARAMS).is_dir()


def save(model: VLM, directory: Path) -> None:
    """Writes `params/` (Orbax), `config.json` and the processor's files."""
    import orbax.checkpoint as ocp

    describe(model, directory)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.resolve() / PARAMS, _pure(nnx.state(model.model)))


def load(directory: Path, *, dtype: str) -> VLM:
    """Reads what `save` has written; parameters are cast to `dtype`."""
    import orbax.checkpoint as ocp

    config, processor, trained = described(directory)
    graph, state = nnx.split(abstract_model(config, dtype=jax.numpy.dtype(dtype)))
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(directory.resolve() / PARAMS, _pure(state))
    nnx.replace_by_pure_dict(state, params)
    return VLM(nnx.merge(graph, state), config, processor, str(directory), trained)


def _pure(state: nnx.State) -> dict:
    return nnx.to_pure_dict(state)


class Checkpoints:
    """The checkpoints of a training run, written while it goes on; the last `keep` stay."""

    def __init__(self, directory: Path, *, keep: int):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # after the one being written

    def save(self, step: int, state: Any) -> None:
        """Keeps a pytree of arrays, once a step; returns when they have been copied."""
        import orbax.checkpoint as ocp

        if step == self._manager.latest_step():
            return
        self._manager.save(step, args=ocp.args.StandardSave(_flat(state)), force=True)

    def latest(self, state: Any) -> Any:
        """The state kept last, shaped and placed as `state` is; `state` where none was kept."""
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        if step is None:
            return state
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flat(state))
        kept = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        return jax.tree.unflatten(jax.tree.structure(state), kept.values())


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path, in order: one form for every optimizer."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {f"{i:04d}{jax.tree_util.keystr(path)}": leaf for i, (path, leaf) in enumerate(leaves)}
