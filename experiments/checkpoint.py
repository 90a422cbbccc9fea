"""Orbax checkpoints of a model: parameters, and beside them the files that describe it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
from flax import nnx

from vlm import VLM
from vlm.config import VLMConfig
from vlm.loading import describe
from vlm.processor import Processor
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

    config = VLMConfig.from_hf(json.loads((directory / "config.json").read_text()))
    graph, state = nnx.split(abstract_model(config, dtype=jax.numpy.dtype(dtype)))
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(directory.resolve() / PARAMS, _pure(state))
    nnx.replace_by_pure_dict(state, params)
    processor = Processor.from_pretrained(directory, config)
    return VLM(nnx.merge(graph, state), config, processor, str(directory))


def _pure(state: nnx.State) -> dict:
    return nnx.to_pure_dict(state)
