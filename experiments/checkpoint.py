"""Orbax checkpoints of a model: parameters, and beside them the files that describe it."""

from __future__ import annotations

from pathlib import Path

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
